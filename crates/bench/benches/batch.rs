//! Batches: eight rows by `generate`, by a continuous batch, and by one whose rows are steered each in its
//! own way; and how long a running row waits while a long prompt joins. Not criterion's: what counts are
//! ratios of one run, and the longest pause, not the mean.
//!
//! `-- bundled` or `-- 0.6B` measures one of the two models.

// A command line speaks on stdout.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::time::Duration;

use mlx_genkit::{ComputeDtype, Model};
use mlxgk_bench::{LONG, ROWS, Result, models, pauses, speeds};

fn main() -> Result<()> {
    let folder = models::default_folder();
    // Cargo adds an argument of its own.
    let asked = std::env::args().skip(1).find(|it| !it.starts_with("--"));
    let wanted = |name: &str| asked.as_deref().is_none_or(|it| it == name);
    if wanted("bundled") {
        measure(
            "bundled model",
            &Model::load(models::endless_bundled(&folder)?, ComputeDtype::Float32)?,
            25,
        )?;
    }
    if wanted("0.6B") {
        measure(
            "0.6B shape",
            &Model::load(models::random_qwen3(&folder)?, ComputeDtype::Float32)?,
            3,
        )?;
    }
    Ok(())
}

fn measure(name: &str, model: &Model, rounds: usize) -> Result<()> {
    let [generate, batch, steered] = speeds(model, rounds)?;
    println!(
        "{name}: {ROWS} rows: {generate:.1} tokens/s by generate, {batch:.1} in a batch ({:.3}), \
         {steered:.1} steered each in its own way ({:.3})",
        batch / generate,
        steered / batch
    );
    let milliseconds = |it: Duration| it.as_secs_f64() * 1e3;
    let longest = |in_chunks| -> Result<f64> {
        Ok(milliseconds(pauses(model, in_chunks)?.into_iter().max().unwrap_or_default()))
    };
    let (whole, chunks) = (longest(false)?, longest(true)?);
    println!(
        "{name}: longest pause while {LONG} tokens join: {whole:.0} ms read as a whole, \
         {chunks:.0} ms in chunks"
    );
    Ok(())
}
