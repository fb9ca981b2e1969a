//! Fills in a form: the model chooses the words, a JSON schema the shape.
//!
//! `cargo run -p mlx-genkit --example structured -- "A ship that came home late"`

use std::io::{Write, stdout};

use mlx_genkit::{ComputeDtype, GenerationConfig, Message, Model, Request, Seed};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let subject = std::env::args().nth(1).unwrap_or_else(|| "the harbour at night".to_owned());
    let schema = json!({
        "type": "object",
        "properties": {
            "headline": {"type": "string", "maxLength": 60},
            "mood": {"enum": ["cheerful", "gloomy", "formal"]},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        },
        "required": ["headline", "mood", "stars"],
        "additionalProperties": false,
    });
    let model = Model::bundled(ComputeDtype::Auto)?;
    let config = GenerationConfig {
        max_new_tokens: Some(120),
        do_sample: Some(true),
        temperature: Some(0.7),
        num_return_sequences: Some(3),
        json_schema: Some(schema),
        ..GenerationConfig::default()
    };
    let chat = vec![Message::new("user", format!("Tell me about {subject}."))];
    let generation = model.generate(Request::new(chat).config(config).seed(Seed::Fast(7)))?;
    let mut out = stdout().lock();
    for sequence in &generation.sequences {
        // Every answer parses; there is nothing to repair.
        let form: Value = serde_json::from_str(&sequence.text)?;
        writeln!(out, "{:5} {:8} {}", form["stars"], form["mood"], form["headline"])?;
    }
    Ok(())
}
