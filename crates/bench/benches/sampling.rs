//! A draw at a vocabulary of 151,936 with 512 tokens of history, and the mask of a JSON schema there,
//! on one core.

// A bench that cannot go on may stop where it stands.
#![allow(clippy::expect_used, reason = "a benchmark that cannot start may panic")]

use criterion::{Criterion, criterion_group, criterion_main};
use mlx_genkit::Seed;
use mlxgk_bench::{Draws, Masks, sampling};

fn draws(c: &mut Criterion) {
    for (name, fields, seed) in [
        ("usual, fast", sampling::usual(), Seed::Fast(0)),
        ("usual, torch", sampling::usual(), Seed::Torch(0)),
        ("nucleus, fast", sampling::nucleus(), Seed::Fast(0)),
        ("nucleus, torch", sampling::nucleus(), Seed::Torch(0)),
    ] {
        let (scores, history) = (sampling::scores(), sampling::history());
        let request = Draws::new(&fields, seed, scores, sampling::VOCAB, history);
        let mut request = request.expect("the fields are right");
        c.bench_function(name, |b| b.iter(|| request.step()));
    }
}

fn masks(c: &mut Criterion) {
    let mut request = Masks::new().expect("the schema is right");
    c.bench_function("mask of a JSON schema", |b| b.iter(|| request.step()));
}

criterion_group!(benches, draws, masks);
criterion_main!(benches);
