//! Several prompts of different lengths in one batch, three draws of each.

use std::io::{Write, stdout};

use mlx_genkit::{ComputeDtype, GenerationConfig, Message, Model, Prompt, Request, Seed};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::bundled(ComputeDtype::Auto)?;
    let questions = ["Hello!", "How is the weather today?", "Tell me a short story about a fox."];
    let prompts = questions.map(|it| Prompt::from(vec![Message::new("user", it)]));

    let config = GenerationConfig {
        max_new_tokens: Some(40),
        do_sample: Some(true),
        num_return_sequences: Some(3),
        ..GenerationConfig::default()
    };
    // With a seed per request and a stream per row, the draws come out the same on every run.
    let request = Request::batch(prompts).config(config).seed(Seed::Fast(1));
    let generation = model.generate(request)?;

    let mut out = stdout();
    for sequence in &generation.sequences {
        let question = questions[sequence.prompt_index];
        writeln!(
            out,
            "{question:36} {} [{}]",
            sequence.text.trim(),
            sequence.finish_reason.as_str()
        )?;
    }
    let seconds = generation.decode.as_secs_f64();
    writeln!(out, "{:.0} tokens/s", generation.generated_tokens() as f64 / seconds)?;
    Ok(())
}
