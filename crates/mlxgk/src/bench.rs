//! `mlxgk bench`: how fast a model is here, and how much memory it takes.

use std::time::{Duration, Instant};

use clap::Args;
use mlx_genkit::{Model, Request, generation_config::Kwargs};
use mlx_rs::{error::Exception, memory};
use serde::Serialize;
use serde_json::json;

use crate::{
    document,
    failure::{Failure, Result},
    flags::{Format, ModelArgs, OutputArgs},
    info::bytes,
    load,
    progress::StepBar,
    terminal,
};

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Model, as --model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    positional: Option<String>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value = "512")]
    prompt_tokens: usize,
    /// New tokens of each run
    #[arg(
        short = 'n',
        long,
        visible_alias = "max-new-tokens",
        value_name = "N",
        default_value = "128"
    )]
    max_tokens: usize,
    /// Runs that are measured, after one that is not
    #[arg(long, value_name = "N", default_value = "5")]
    runs: usize,
    /// Choose tokens on the device, so that the next pass begins before the host has read them
    #[arg(long)]
    choose_on_device: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// One run.
#[derive(Debug, Serialize)]
struct Run {
    /// Seconds from the request to its first token.
    time_to_first_token: f64,
    /// Tokens of the prompt per second until then.
    prefill_tokens_per_second: f64,
    /// New tokens after the first, per second.
    tokens_per_second: f64,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Benchmark {
    model: String,
    dtype: String,
    prompt_tokens: usize,
    generated_tokens: usize,
    choose_on_device: bool,
    load_seconds: f64,
    /// The median of each figure over the runs.
    median: Run,
    /// The most memory that MLX held during the runs, weights included.
    peak_memory_bytes: usize,
    runs: Vec<Run>,
    versions: document::Versions,
}

/// The subcommand.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if args.prompt_tokens == 0 || args.max_tokens < 2 || args.runs == 0 {
        return Err(Failure::usage(
            "--prompt-tokens and --runs must be at least 1, --max-tokens at least 2",
        ));
    }
    let name = args.positional.clone().or_else(|| args.model.model.clone());
    let (model, loaded) = load::load(&ModelArgs { model: name, ..args.model.clone() })?;
    let length = args.prompt_tokens.saturating_add(args.max_tokens);
    let context = model.decoder().max_positions();
    if length > context {
        return Err(Failure::usage(format_args!(
            "--prompt-tokens and --max-tokens are {length} together; the model's context has {context}"
        )));
    }
    let prompt = prompt(args.prompt_tokens, model.decoder().vocab_size());
    let bar = StepBar::new(args.runs + 1, "runs");
    // What is compiled and filled once is not measured.
    measure(&model, &prompt, args)?;
    bar.advance();
    memory::reset_peak_memory().map_err(|e| mlx(&e))?;
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        runs.push(measure(&model, &prompt, args)?);
        bar.advance();
    }
    let peak_memory_bytes = memory::peak_memory().map_err(|e| mlx(&e))?;
    drop(bar);
    let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    let benchmark = Benchmark {
        model: model.name().to_owned(),
        dtype: format!("{:?}", model.decoder().dtype()).to_lowercase(),
        prompt_tokens: args.prompt_tokens,
        generated_tokens: args.max_tokens,
        choose_on_device: args.choose_on_device,
        load_seconds: loaded.as_secs_f64(),
        median: Run {
            time_to_first_token: of(|it| it.time_to_first_token),
            prefill_tokens_per_second: of(|it| it.prefill_tokens_per_second),
            tokens_per_second: of(|it| it.tokens_per_second),
        },
        peak_memory_bytes,
        runs,
        versions: document::Versions::OURS,
    };
    match args.output.format {
        Format::Json => document::print(&benchmark),
        Format::Text => print(&benchmark),
    }
}

fn mlx(error: &Exception) -> Failure {
    Failure::other(format_args!("MLX does not report its memory: {}", error.what()))
}

/// Token ids that repeat only after a long while, so that nothing is found in a cache.
fn prompt(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|it| ((it * 7919 + 13) % vocab) as u32).collect()
}

/// A greedy request, timed. It never ends early: no token is an end token.
fn measure(model: &Model, prompt: &[u32], args: &BenchArgs) -> Result<Run> {
    let new_tokens = args.max_tokens;
    let overrides = Kwargs::from_json(&json!({
        "do_sample": false, "max_new_tokens": new_tokens, "min_new_tokens": null, "eos_token_id": null,
    }));
    let overrides = overrides.map_err(Failure::usage)?;
    let begun = Instant::now();
    let request = Request::new(prompt.to_vec()).overrides(overrides);
    let request = request.choose_on_device(args.choose_on_device);
    let (mut first, mut count) = (begun, 0);
    for piece in model.stream(request)? {
        piece?;
        if count == 0 {
            first = Instant::now();
        }
        count += 1;
    }
    if count != new_tokens {
        let what = format_args!("a run ended after {count} of {new_tokens} tokens");
        return Err(Failure::other(what));
    }
    let until_first = (first - begun).as_secs_f64();
    Ok(Run {
        time_to_first_token: until_first,
        prefill_tokens_per_second: prompt.len() as f64 / until_first,
        tokens_per_second: (count - 1) as f64 / at_least_a_tick(first.elapsed()),
    })
}

/// Seconds that can be divided by.
fn at_least_a_tick(time: Duration) -> f64 {
    time.max(Duration::from_nanos(1)).as_secs_f64()
}

/// The middle one, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

fn print(it: &Benchmark) -> Result<()> {
    let of = |name: &str, figure: fn(&Run) -> f64, unit: &str| {
        let values = it.runs.iter().map(figure);
        let (low, high) =
            values.fold((f64::INFINITY, 0.0), |(low, high), it| (it.min(low), it.max(high)));
        let median = figure(&it.median);
        terminal::line(format_args!("{name:<22}{median:.1} {unit} ({low:.1} to {high:.1})"))
    };
    terminal::line(format_args!("{:<22}{}, {}", "model", it.model, it.dtype))?;
    of("time to first token", |it| it.time_to_first_token * 1e3, "ms")?;
    of("prefill", |it| it.prefill_tokens_per_second, "tokens/s")?;
    of("decode", |it| it.tokens_per_second, "tokens/s")?;
    terminal::line(format_args!("{:<22}{}", "peak memory", bytes(it.peak_memory_bytes)))?;
    Ok(terminal::line(format_args!(
        "{:<22}{} run(s) of {} + {} tokens; medians, and the range in brackets",
        "measured",
        it.runs.len(),
        it.prompt_tokens,
        it.generated_tokens
    ))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
