//! An answer as it is made: `chat QUESTION [SYSTEM PROMPT] [MODEL FOLDER]`.

use std::io::{Write, stdout};

use mlx_genkit::{ComputeDtype, GenerationConfig, Message, Model, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let question = args.next().unwrap_or_else(|| "What do you like?".to_owned());
    let system = args.next();
    let model = match args.next() {
        Some(folder) => Model::load(folder, ComputeDtype::Auto)?,
        None => Model::bundled(ComputeDtype::Auto)?,
    };

    let mut messages: Vec<Message> = Vec::new();
    messages.extend(system.map(|it| Message::new("system", it)));
    messages.push(Message::new("user", question));

    let config = GenerationConfig {
        max_new_tokens: Some(200),
        do_sample: Some(true),
        temperature: Some(0.7),
        ..GenerationConfig::default()
    };
    let mut stream = model.stream(Request::new(messages).config(config))?;
    for piece in stream.by_ref() {
        write!(stdout(), "{}", piece?.text)?;
        stdout().flush()?;
    }
    let generation = stream.finish()?;
    writeln!(stdout(), "\n({} tokens)", generation.generated_tokens())?;
    Ok(())
}
