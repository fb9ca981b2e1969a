//! One shared prompt, two continuations: fork a cache instead of feeding the prompt twice.
//!
//! `cargo run -p mlxgk-kv-cache --example fork`

#![allow(clippy::print_stdout, reason = "an example prints")]

use mlx_rs::{Dtype, ops::zeros_dtype};
use mlxgk_kv_cache::{KvCache, LayerSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layers = [LayerSpec::Full, LayerSpec::Sliding { window: 512 }];
    let mut prompt = KvCache::new(&layers, 1);
    let keys = zeros_dtype(&[1, 8, 1000, 64], Dtype::Float32)?;
    for layer in 0..layers.len() {
        prompt.update(layer, &keys, &keys)?;
    }
    prompt.advance(1000);

    let mut question = prompt.fork();
    let more = zeros_dtype(&[1, 8, 20, 64], Dtype::Float32)?;
    for layer in 0..layers.len() {
        question.update(layer, &more, &more)?;
    }
    question.advance(20);

    for (name, cache) in [("prompt", &prompt), ("question", &question)] {
        println!(
            "{name}: {} columns, {} bytes visible to the next token, {} allocated",
            cache.len(),
            cache.live_bytes(),
            cache.allocated_bytes()
        );
    }
    Ok(())
}
