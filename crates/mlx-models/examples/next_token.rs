//! The five likeliest next tokens after some token ids.
//!
//! `cargo run -p mlxgk-mlx-models --example next_token -- fixtures/models/qwen3 5,17,30`

#![allow(clippy::print_stdout, reason = "an example prints")]

use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| "fixtures/models/qwen3".to_owned());
    let ids = args.next().unwrap_or_else(|| "5,17,30".to_owned());
    let ids = ids.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;

    let model = Decoder::load(folder, ComputeDtype::Auto)?;
    let mut cache = model.new_cache(1);
    let hidden = model.hidden(&[&ids], &mut cache, &mut NoHook)?;
    let logits = model.logits(&hidden)?;
    let logits: Vec<f32> = logits.to_vec_exact()?;
    let last = &logits[logits.len() - model.vocab_size()..];

    let mut order: Vec<usize> = (0..last.len()).collect();
    order.sort_by(|&a, &b| last[b].total_cmp(&last[a]));
    for id in order.into_iter().take(5) {
        println!("{id:>6}  {:.4}", last[id]);
    }
    Ok(())
}
