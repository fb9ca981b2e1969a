//! Twenty greedy tokens after some token ids, printed as they are made.
//!
//! `cargo run -p mlxgk-decoding-strategies --example continue -- fixtures/models/qwen3 5,17,30`

#![allow(clippy::print_stdout, reason = "an example prints")]

use mlxgk_decoding_strategies::{
    LeftPadded, Limits, Prefill, RowGroup, RowOutcome, SampleLoop, TokenLoop,
};
use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| "fixtures/models/qwen3".to_owned());
    let ids = args.next().unwrap_or_else(|| "5,17,30".to_owned());
    let ids = ids.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;

    let model = Decoder::load(folder, ComputeDtype::Auto)?;
    let prompts = LeftPadded::new(&[ids], 0)?;
    let session = Prefill::new(&model, &prompts, NoHook).finish()?;
    let group = RowGroup::greedy(Limits { max_new_tokens: 20, eos: vec![] });
    let mut tokens = SampleLoop::new(session, &prompts, group);
    while let Some(step) = tokens.step() {
        for event in step? {
            if let RowOutcome::Token { token, .. } = event.outcome {
                println!("{token}");
            }
        }
    }
    Ok(())
}
