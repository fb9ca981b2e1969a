//! One shared prompt, two continuations: fork a cache instead of feeding the prompt twice.
//!
//! `cargo run -p mlxgk-kv-cache --example fork`

#![allow(clippy::print_stdout, reason = "an example prints")]

use mlx_rs::{Dtype, ops::zeros_dtype};
use mlxgk_kv_cache::{KvCache, LayerSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layers = [LayerSpec::Full, LayerSpec::Sliding { window: 512 }];
    let mut prompt = KvCache::new(&layers, 1);
    feed(&mut prompt, 1000)?;
    let mut question = prompt.fork();
    feed(&mut question, 20)?;

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

/// A pass over so many tokens.
fn feed(cache: &mut KvCache, count: usize) -> Result<(), Box<dyn std::error::Error>> {
    let keys = zeros_dtype(&[1, 8, count as i32, 64], Dtype::Float32)?;
    let layers = cache.layers().len();
    let mut pass = cache.begin_tokens(&[&vec![7; count]], &[])?;
    for layer in 0..layers {
        pass.append(layer, &keys, &keys)?;
    }
    pass.commit()?;
    Ok(())
}
