//! Batches: eight rows by `generate`, by a continuous batch, and by one whose rows are steered each in its
//! own way; and how long a running row waits while a long prompt joins.

use std::time::{Duration, Instant};

use mlx_genkit::{
    Batch, BatchOutcome, GenerationConfig, HookPoint, Model, Request,
    steering::{Injection, Steering, SteeringVectors},
};

use crate::{Result, task::median};

/// Tokens of the prompt that joins.
pub const LONG: u32 = 4096;
/// Rows of a batch.
pub const ROWS: u32 = 8;
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

/// Tokens per second of eight rows by `generate`, without those that the prefill has chosen.
fn generated(model: &Model) -> Result<f64> {
    let prompts = (0..ROWS).map(|row| prompt(32, row));
    let generation = model.generate(Request::batch(prompts).config(config(NEW_TOKENS)))?;
    let tokens = generation.generated_tokens() - ROWS as usize;
    Ok(tokens as f64 / generation.decode.as_secs_f64())
}

/// The same of eight requests that share a batch, as long as all of them run.
fn continuous(model: &Model, steerings: &[Steering]) -> Result<f64> {
    let mut batch = Batch::new(model);
    for row in 0..ROWS {
        let mut request = request(32, row, NEW_TOKENS);
        if let Some(steering) = steerings.get(row as usize) {
            request = request.steering(steering.clone());
        }
        batch.join(request)?;
    }
    while batch.step()?.len() < ROWS as usize {}
    let (begun, mut steps) = (Instant::now(), 0);
    loop {
        let is_piece = |it: &BatchOutcome| matches!(it, BatchOutcome::Piece(_));
        let events = batch.step()?;
        steps += 1;
        if events.len() > ROWS as usize || !events.iter().all(|it| is_piece(&it.outcome)) {
            return Ok(f64::from(steps * ROWS) / begun.elapsed().as_secs_f64());
        }
    }
}

/// A steering per row that adds another vector after every block.
fn steerings(model: &Model) -> Result<Vec<Steering>> {
    let decoder = model.decoder();
    let one = vec![0.01; decoder.hidden_size()];
    let points = (0..decoder.layers().len()).map(HookPoint::ResidPost);
    let ones = SteeringVectors::new(points.map(|it| (it, one.clone())))?;
    let of_row = |row| Ok(Injection::new(ones.random_like(u64::from(row))?, 1.0).into());
    (0..ROWS).map(of_row).collect()
}

/// Tokens per second of eight rows by `generate`, in a continuous batch, and in one whose rows are steered
/// each in its own way: medians of so many rounds, in which they take turns.
///
/// # Errors
/// When the model fails.
pub fn speeds(model: &Model, rounds: usize) -> Result<[f64; 3]> {
    let steerings = steerings(model)?;
    let mut speeds = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        let found = [generated(model)?, continuous(model, &[])?, continuous(model, &steerings)?];
        speeds.iter_mut().zip(found).for_each(|(all, it)| all.push(it));
    }
    Ok(speeds.map(median))
}

/// How long a running row waits for each of its tokens while a long prompt joins: read as a whole, as a
/// request with a loop of its own is, or in chunks between the row's tokens.
///
/// # Errors
/// When the model fails.
pub fn pauses(model: &Model, in_chunks: bool) -> Result<Vec<Duration>> {
    let mut batch = Batch::new(model);
    let row = batch.join(request(32, 0, NEW_TOKENS))?;
    let (mut last, mut pauses, mut seen) = (Instant::now(), Vec::new(), 0);
    while !batch.is_empty() && seen < NEW_TOKENS {
        for event in batch.step()? {
            if event.id == row && matches!(event.outcome, BatchOutcome::Piece(_)) {
                seen += 1;
                if seen > BEFORE {
                    pauses.push(last.elapsed());
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
    Ok(pauses)
}
