//! A Burn model that answers by a config file: a JSON schema, stop strings, torch's seed.
//!
//! `cargo run -- ../../crates/mlx-genkit/bundled "Is the sea blue?"` takes the tokenizer of that
//! folder. The model is a toy with random weights, so the answer is JSON and means nothing.

use burn::tensor::{Device, Distribution, Int, Tensor};
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
    println!("{}", answer(&Toy::new(), &folder, &prompt)?);
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
    embedding: Tensor<2>,
    head: Tensor<2>,
    device: Device,
}

impl Toy {
    fn new() -> Self {
        let device = Device::default();
        let random = |shape| Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device);
        Self { embedding: random([VOCAB, HIDDEN]), head: random([HIDDEN, VOCAB]), device }
    }

    fn scores(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let last = *tokens.last().ok_or("the prompt is empty")?;
        let last = Tensor::<1, Int>::from_ints([last as i32], &self.device);
        let scores = self.embedding.clone().select(0, last).matmul(self.head.clone()) * 0.1;
        Ok(scores.try_into_data()?.try_into_vec()?)
    }
}
