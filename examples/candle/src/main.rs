//! A candle model that answers by a config file: a JSON schema, stop strings, torch's seed.
//!
//! `cargo run -- ../../crates/mlx-genkit/bundled "Is the sea blue?"` takes the tokenizer of that
//! folder. The model is a toy with random weights, so the answer is JSON and means nothing.

use candle_core::{Device, IndexOp, Tensor};
use mlxgk_generation_config::GenerationConfig;
use mlxgk_sampling::{NextToken, Seed, Text};
use mlxgk_tokenizer_bridge::Tokenizer;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// As many as the tokenizer of the bundled model has tokens.
const VOCAB: usize = 2560;
const HIDDEN: usize = 64;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("expected a folder with a tokenizer, and a prompt")?;
    let prompt = arguments.next().unwrap_or_default();
    println!("{}", answer(&Toy::new()?, &folder, &prompt)?);
    Ok(())
}

/// Everything that `generate()` would do with the scores.
fn answer(model: &Toy, folder: &str, prompt: &str) -> Result<String> {
    let config =
        GenerationConfig::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/../answer.json"))?;
    let tokenizer = Tokenizer::from_folder(folder)?;
    let mut tokens = tokenizer.encode(prompt, true)?;
    let prompt_len = tokens.len();
    let resolved = config.resolve(&GenerationConfig::default(), prompt_len, None)?;
    let text = Text::from(tokenizer.clone());
    let mut next = NextToken::new(&resolved, VOCAB, Some(&text), Seed::Torch(42))?;
    loop {
        let step = next.next(&tokens, &mut model.scores(&tokens)?)?;
        tokens.push(step.token);
        if step.finish_reason.is_some() {
            return Ok(tokenizer.decode(&tokens[prompt_len..], true)?);
        }
    }
}

/// Scores the tokens that may follow the last one.
struct Toy {
    embedding: Tensor,
    head: Tensor,
}

impl Toy {
    fn new() -> Result<Self> {
        let random = |shape| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
        Ok(Self { embedding: random((VOCAB, HIDDEN))?, head: random((HIDDEN, VOCAB))? })
    }

    fn scores(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let last = *tokens.last().ok_or("the prompt is empty")? as usize;
        let hidden = self.embedding.i(last..last + 1)?;
        Ok((hidden.matmul(&self.head)? * 0.1)?.squeeze(0)?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_fits_the_schema_whatever_the_weights() {
        for _ in 0..5 {
            let toy = Toy::new().unwrap();
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/mlx-genkit/bundled");
            let text = answer(&toy, folder, "Is the sea blue?").unwrap();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(["yes", "no"].contains(&value["answer"].as_str().unwrap()), "{text}");
            assert!(value["sure"].is_boolean(), "{text}");
            // The same seed, the same weights, the same tokens.
            assert_eq!(answer(&toy, folder, "Is the sea blue?").unwrap(), text);
        }
    }
}
