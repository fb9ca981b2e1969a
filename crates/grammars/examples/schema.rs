//! A "model" that scores at random, held to a JSON schema.
//!
//! `cargo run -p mlxgk-grammars --example schema`

#![allow(clippy::print_stdout, reason = "an example prints")]

use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::{Context, Error, LogitsProcessor};
use mlxgk_torch::TorchRng;

const END: u32 = 256;

fn main() -> Result<(), Error> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"\xff<|end|>".to_vec());
    let vocabulary = Vocabulary::new(&tokens, &[END])?;
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "animal": {"enum": ["fox", "owl", "otter"]},
            "legs": {"type": "integer", "minimum": 2, "maximum": 4},
        },
        "required": ["animal", "legs"],
        "additionalProperties": false,
    });
    let processor = GrammarProcessor::new(&vocabulary, &Grammar::json_schema(&schema)?)?;

    let mut random = TorchRng::new(7);
    let mut said: Vec<u32> = Vec::new();
    while said.last() != Some(&END) {
        let mut scores: Vec<f32> = tokens.iter().map(|_| random.uniform_f32()).collect();
        processor.process(&Context::new(&said, 0), &mut scores)?;
        let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        said.extend(best.map(|it| it as u32));
    }
    let text: Vec<u8> = said.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
    println!("{}", String::from_utf8_lossy(&text));
    Ok(())
}
