//! Prints what a `generation_config.json` means for a prompt of 12 tokens.
//!
//! `cargo run -p mlxgk-generation-config --example explain -- FILE.json`; without a file, it
//! explains a small config of its own.

use std::error::Error;

use mlxgk_generation_config::{GenerationConfig, Kwargs, Sources};
use serde_json::json;

#[allow(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<(), Box<dyn Error>> {
    let passed = match std::env::args().nth(1) {
        Some(path) => GenerationConfig::from_file(path)?,
        None => GenerationConfig::from_json(&json!({
            "do_sample": false, "temperature": 0.7, "max_new_tokens": 40, "stop_word": "###",
        }))?,
    };
    let (kwargs, model) = (Kwargs::default(), GenerationConfig::default());
    let merged = Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge()?;
    let resolved = merged.resolve(12, None)?;

    println!("mode        {}", resolved.mode);
    println!("new tokens  {}", resolved.lengths.max_new_tokens());
    println!("fields      {}", resolved.config.to_json());
    for warning in &resolved.warnings {
        println!("warning     {warning}");
    }
    Ok(())
}
