//! Twenty greedy tokens after some token ids, printed as they are made.
//!
//! `cargo run -p mlxgk-decoding-strategies --example continue -- fixtures/models/qwen3 5,17,30`

#![allow(clippy::print_stdout, reason = "an example prints")]

use mlxgk_decoding_strategies::{
    DEFAULT_PREFILL_CHUNK, DecoderSession, Decoding, LeftPadded, Rule, Stop,
};
use mlxgk_logits_processors::ProcessorList;
use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| "fixtures/models/qwen3".to_owned());
    let ids = args.next().unwrap_or_else(|| "5,17,30".to_owned());
    let ids = ids.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;

    let model = Decoder::load(folder, ComputeDtype::Auto)?;
    let prompts = LeftPadded::new(&[ids], 0)?;
    let mut hook = NoHook;
    let session = DecoderSession::prefill(&model, &prompts, DEFAULT_PREFILL_CHUNK, &mut hook)?;
    let stop = Stop { max_new_tokens: 20, eos: vec![] };
    let processors = ProcessorList::default();
    let (rows, padding) = (prompts.rows(), prompts.padding());
    for step in Decoding::new(session, rows, padding, processors, Rule::Greedy, stop, 0) {
        println!("{:?}", step?[0]);
    }
    Ok(())
}
