//! Draws tokens from one row of logits with HF's settings and torch's generator.
//!
//! `cargo run -p mlxgk-samplers --example draw -- SEED`. With candle, the row would come from
//! `logits.to_vec1::<f32>()`; with ONNX Runtime, from `try_extract_tensor::<f32>()`.

use std::error::Error;

use mlxgk_samplers::{SamplerState, TorchRng, WarperConfig, greedy};

#[allow(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<(), Box<dyn Error>> {
    let seed = match std::env::args().nth(1) {
        Some(seed) => seed.parse()?,
        None => 0,
    };
    let words = ["the", "a", "one", "no", "every", "some", "that", "this"];
    let logits = [3.2, 2.9, 1.1, 0.3, 0.2, 1.9, 2.4, -0.5];

    let config = WarperConfig {
        temperature: Some(0.8),
        top_k: Some(6),
        top_p: Some(0.95),
        ..WarperConfig::default()
    };
    let (mut sampler, mut state) = (config.chain()?.sampler(), SamplerState::default());
    let mut rng = TorchRng::new(seed);
    println!("likeliest  {}", words[greedy(&logits)? as usize]);
    for (id, p) in sampler.distribution(&logits, &state, &mut rng)?.iter() {
        println!("{:>9}  {p:.3}", words[id as usize]);
    }
    let mut draw = || sampler.sample(&logits, &mut state, &mut rng);
    let draws: Result<Vec<_>, _> = (0..10).map(|_| draw()).collect();
    let drawn: Vec<_> = draws?.iter().map(|&id| words[id as usize]).collect();
    println!("drawn      {}", drawn.join(" "));
    Ok(())
}
