//! Decoded tokens per second and prefill, at the bundled model and at the shape of Qwen3-0.6B.

// A bench that cannot go on may stop where it stands.
#![allow(clippy::expect_used, reason = "a benchmark that cannot start may panic")]

use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use mlx_genkit::{ComputeDtype, Model};
use mlxgk_bench::{models, time};

/// Ids below 2,000, which both vocabularies have.
fn prompt(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| (at * 7919 + 13) % 2000).collect()
}

fn measure(c: &mut Criterion, name: &str, model: &Model, prefill: u32) {
    let mut group = c.benchmark_group(name);
    // The fewest that criterion allows: the large model's prefill takes many seconds.
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));

    group.throughput(Throughput::Elements(1));
    group.bench_function("decode", |b| {
        b.iter_custom(|tokens| {
            let limit = model.decoder().max_positions() as u64 - 32;
            let mut spent = Duration::ZERO;
            let mut left = tokens;
            while left > 0 {
                let steps = left.min(limit - 1);
                let timed = time(model, &prompt(32), steps as usize + 1).expect("the model runs");
                spent += timed.rest;
                left -= steps;
            }
            spent
        });
    });

    group.throughput(Throughput::Elements(prefill.into()));
    group.bench_function(format!("prefill of {prefill}"), |b| {
        b.iter_custom(|times| {
            let begun = Instant::now();
            for _ in 0..times {
                time(model, &prompt(prefill), 1).expect("the model runs");
            }
            begun.elapsed()
        });
    });
}

fn generation(c: &mut Criterion) {
    let folder = models::default_folder();
    let open =
        |path| Model::load(path, ComputeDtype::Float32).expect("the folder was just written");
    let bundled = open(models::endless_bundled(&folder).expect("build/bench can be written"));
    measure(c, "bundled", &bundled, 512);
    let large = open(models::random_qwen3(&folder).expect("build/bench can be written"));
    measure(c, "Qwen3-0.6B shape", &large, 2048);
}

criterion_group!(benches, generation);
criterion_main!(benches);
