//! Batches: eight rows by `generate` and by a continuous batch, and how long a running row waits while a
//! long prompt joins. Not criterion's: what counts is the longest pause, not the mean.

// A command line speaks on stdout.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::time::{Duration, Instant};

use mlx_genkit::{Batch, BatchOutcome, ComputeDtype, GenerationConfig, Model, Request};
use mlxgk_bench::{Result, models};

/// Tokens of the prompt that joins.
const LONG: u32 = 4096;
const ROWS: u32 = 8;
const NEW_TOKENS: usize = 64;
/// Tokens of the running row before the prompt joins.
const BEFORE: usize = 8;

fn prompt(tokens: u32, salt: u32) -> Vec<u32> {
    (0..tokens).map(|at| (at * 7919 + salt * 13) % 2000).collect()
}

fn request(tokens: u32, salt: u32, new_tokens: usize) -> Request<'static> {
    Request::new(prompt(tokens, salt)).config(config(new_tokens))
}

fn config(new_tokens: usize) -> GenerationConfig {
    GenerationConfig {
        do_sample: Some(false),
        max_new_tokens: Some(new_tokens),
        ..GenerationConfig::default()
    }
}

/// Tokens per second after the prefill, of eight rows.
fn generated(model: &Model) -> Result<f64> {
    let prompts = (0..ROWS).map(|row| prompt(32, row));
    let generation = model.generate(Request::batch(prompts).config(config(NEW_TOKENS)))?;
    Ok(generation.generated_tokens() as f64 / generation.decode.as_secs_f64())
}

/// The same of eight requests that share a batch, from the step on in which all run.
fn continuous(model: &Model) -> Result<f64> {
    let mut batch = Batch::new(model);
    for row in 0..ROWS {
        batch.join(request(32, row, NEW_TOKENS))?;
    }
    while batch.step()?.len() < ROWS as usize {}
    let (begun, mut tokens) = (Instant::now(), 0);
    while !batch.is_empty() {
        let is_piece = |it: &BatchOutcome| matches!(it, BatchOutcome::Piece(_));
        tokens += batch.step()?.iter().filter(|it| is_piece(&it.outcome)).count();
    }
    Ok(tokens as f64 / begun.elapsed().as_secs_f64())
}

/// The longest time between two tokens of a running row while a long prompt joins: read as a whole, as
/// a request with a loop of its own is, or in chunks between the row's tokens.
fn longest_pause(model: &Model, in_chunks: bool) -> Result<Duration> {
    let mut batch = Batch::new(model);
    let row = batch.join(request(32, 0, NEW_TOKENS))?;
    let (mut last, mut longest, mut seen) = (Instant::now(), Duration::ZERO, 0);
    while !batch.is_empty() && seen < NEW_TOKENS {
        for event in batch.step()? {
            if event.id == row && matches!(event.outcome, BatchOutcome::Piece(_)) {
                seen += 1;
                if seen > BEFORE {
                    longest = longest.max(last.elapsed());
                }
                last = Instant::now();
            }
        }
        if seen == BEFORE {
            if in_chunks {
                batch.join(request(LONG, 1, 4))?;
            } else {
                model.stream(request(LONG, 1, 4))?.prefill()?;
            }
        }
    }
    Ok(longest)
}

fn main() -> Result<()> {
    let folder = models::default_folder();
    for (name, path) in [
        ("bundled", models::endless_bundled(&folder)?),
        ("Qwen3-0.6B shape", models::random_qwen3(&folder)?),
    ] {
        let model = Model::load(path, ComputeDtype::Float32)?;
        let (generate, batch) = (generated(&model)?, continuous(&model)?);
        println!("{name}: {ROWS} rows: {generate:.0} tokens/s by generate, {batch:.0} in a batch");
        if model.decoder().max_positions() < LONG as usize {
            continue;
        }
        let milliseconds = |it: Duration| it.as_secs_f64() * 1e3;
        let whole = milliseconds(longest_pause(&model, false)?);
        let chunks = milliseconds(longest_pause(&model, true)?);
        println!(
            "{name}: longest pause while {LONG} tokens join: {whole:.0} ms read as a whole, \
             {chunks:.0} ms in chunks"
        );
    }
    Ok(())
}
