//! A model in ONNX Runtime that answers by a config file: a JSON schema, stop strings, torch's seed.
//!
//! `cargo run -- model.onnx ../../crates/mlx-genkit/bundled "Is the sea blue?"` takes the tokenizer of
//! that folder. The model's input is `input_ids` (one row of 64-bit ids), its output `logits`.
//! ONNX Runtime's library is taken from where `ORT_DYLIB_PATH` says.

use mlxgk_generation_config::GenerationConfig;
use mlxgk_sampling::{NextToken, Seed, Text};
use mlxgk_tokenizer_bridge::Tokenizer;
use ort::{session::Session, value::TensorRef};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |what: &str| arguments.next().ok_or(format!("expected {what}"));
    let environment = ort::init().build()?;
    let session = Session::builder(&environment)?.commit_from_file(argument("an ONNX file")?)?;
    let folder = argument("a folder with a tokenizer")?;
    println!("{}", answer(&mut Model(session), &folder, &argument("a prompt")?)?);
    Ok(())
}

/// Everything that `generate()` would do with the scores.
fn answer(model: &mut Model, folder: &str, prompt: &str) -> Result<String> {
    let config =
        GenerationConfig::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/../answer.json"))?;
    let tokenizer = Tokenizer::from_folder(folder)?;
    let mut tokens = tokenizer.encode(prompt, true)?;
    let prompt_len = tokens.len();
    let resolved = config.resolve(&GenerationConfig::default(), prompt_len, None)?;
    let text = Text::from(tokenizer.clone());
    let vocab_size = model.scores(&tokens)?.len();
    let mut next = NextToken::new(&resolved, vocab_size, Some(&text), Seed::Torch(42))?;
    loop {
        let step = next.next(&tokens, &mut model.scores(&tokens)?)?;
        tokens.push(step.token);
        if step.finish_reason.is_some() {
            return Ok(tokenizer.decode(&tokens[prompt_len..], true)?);
        }
    }
}

/// Scores the tokens that may follow a text. A program with a cache would feed the newest token only.
struct Model(Session);

impl Model {
    fn scores(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let ids: Vec<i64> = tokens.iter().map(|&it| it.into()).collect();
        let ids = TensorRef::from_array_view(([1, ids.len()], &ids[..]))?;
        let outputs = self.0.run(ort::inputs!["input_ids" => ids])?;
        let (shape, logits) = outputs["logits"].try_extract_tensor::<f32>()?;
        let vocab_size = shape.last().map_or(0, |&it| it as usize);
        Ok(logits[logits.len() - vocab_size..].to_vec())
    }
}
