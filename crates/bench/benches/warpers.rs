//! One draw through each kind of warper, at the vocabulary of Qwen2, on one core.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mlx_genkit::samplers::{FastRng, Generator, SamplerState, TorchRng, WarperConfig, greedy};

const VOCAB: usize = 151_936;

/// Normally distributed scores: at a deviation of 1 almost flat, at 3 as peaked as a model's.
fn scores(deviation: f32) -> Vec<f32> {
    let mut rng = FastRng::new(0, 0);
    let mut normal = || (0..12).map(|_| rng.uniform()).sum::<f32>() - 6.0;
    (0..VOCAB).map(|_| normal() * deviation).collect()
}

fn draw(
    c: &mut Criterion,
    name: &str,
    config: &WarperConfig,
    deviation: f32,
    rng: &mut dyn Generator,
) {
    let scores = scores(deviation);
    let mut sampler = config.chain().unwrap_or_default().sampler();
    let mut state = SamplerState::default();
    c.bench_function(name, |b| b.iter(|| sampler.sample(black_box(&scores), &mut state, rng)));
}

fn benches(c: &mut Criterion) {
    let fast = &mut FastRng::new(0, 0);
    let torch = &mut TorchRng::new(0);
    let none = WarperConfig::default();
    let warm = WarperConfig { temperature: Some(0.7), ..none.clone() };
    let nucleus = WarperConfig { top_p: Some(0.9), ..warm.clone() };
    let usual = WarperConfig { top_k: Some(50), ..nucleus.clone() };

    let row = scores(3.0);
    c.bench_function("greedy", |b| b.iter(|| greedy(black_box(&row))));
    draw(c, "temperature, top-k 50, top-p 0.9", &usual, 3.0, fast);
    draw(c, "temperature, top-k 50, top-p 0.9, flat", &usual, 1.0, fast);
    draw(c, "temperature, top-p 0.9", &nucleus, 3.0, fast);
    draw(c, "temperature, top-p 0.9, flat", &nucleus, 1.0, fast);
    draw(c, "temperature", &warm, 3.0, fast);
    draw(c, "temperature, top-k 50, top-p 0.9, torch", &usual, 3.0, torch);
    draw(c, "temperature, top-p 0.9, torch", &nucleus, 3.0, torch);
    draw(c, "temperature, torch", &warm, 3.0, torch);
    for (name, config) in [
        ("min-p 0.05", WarperConfig { min_p: Some(0.05), ..none.clone() }),
        ("typical 0.9", WarperConfig { typical_p: Some(0.9), ..none.clone() }),
        ("eta 0.002", WarperConfig { eta_cutoff: Some(0.002), ..none.clone() }),
        ("top-h 0.5", WarperConfig { top_h: Some(0.5), ..none.clone() }),
        ("top-n-sigma 1", WarperConfig { top_n_sigma: Some(1.0), ..none }),
    ] {
        draw(c, name, &config, 3.0, fast);
    }
}

criterion_group!(samplers, benches);
criterion_main!(samplers);
