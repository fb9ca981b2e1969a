//! A draw at a vocabulary of 151,936 with 512 tokens of history, and the mask of a JSON schema there,
//! on one core; and what grammars cost over a vocabulary of 262,144.

// A bench that cannot go on may stop where it stands.
#![allow(clippy::expect_used, reason = "a benchmark that cannot start may panic")]

use criterion::{Criterion, criterion_group, criterion_main};
use mlx_genkit::Seed;
use mlxgk_bench::{Draws, Masks, sampling, vocabulary};

/// Gemma's.
const WIDE: usize = 262_144;

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

/// What a vocabulary of Gemma's size costs: once, per grammar, per mask.
fn wide(c: &mut Criterion) {
    let mut group = c.benchmark_group("a vocabulary of 262,144");
    group.sample_size(10);
    let first = || Masks::over(&vocabulary(WIDE)?, WIDE)?.step();
    group.bench_function("first grammar and mask", |b| b.iter(|| first().expect("it fits")));
    let known = vocabulary(WIDE).expect("the vocabulary is right");
    let further = || Masks::over(&known, WIDE)?.step();
    group.bench_function("a further grammar and mask", |b| b.iter(|| further().expect("it fits")));
    let mut request = Masks::over(&known, WIDE).expect("the schema is right");
    group.bench_function("mask of a JSON schema", |b| b.iter(|| request.step()));
}

criterion_group!(benches, draws, masks, wide);
criterion_main!(benches);
