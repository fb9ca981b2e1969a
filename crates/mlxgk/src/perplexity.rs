//! `mlxgk perplexity`: how well a model predicts the text of a file.

use std::{path::PathBuf, time::Instant};

use clap::Args;
use mlx_genkit::{Error, Model, Request};
use serde::Serialize;

use crate::{
    document,
    failure::{Failure, Result},
    files,
    flags::{Format, ModelArgs, OutputArgs, SteerArgs},
    load,
    progress::StepBar,
    terminal,
};

/// Tokens before a prediction at most, unless the model's context is shorter.
const WINDOW: usize = 2048;

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct PerplexityArgs {
    /// Model, as --model, and the text file; or the file alone, `-` for stdin
    #[arg(value_name = "FILE", required = true, num_args = 1..=2)]
    paths: Vec<String>,
    /// Tokens that a prediction sees at most; the model's context or 2048 by default, whichever is
    /// shorter
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Tokens that each window predicts beyond the one before it: each is then predicted from at least
    /// window - stride tokens; half the window by default
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    steering: SteerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Measured {
    file: String,
    model: String,
    /// Tokens of the text; all but the first are predicted.
    tokens: usize,
    bytes: usize,
    /// The sum of the predictions' natural log-probabilities.
    sum: f64,
    perplexity: f64,
    bits_per_byte: f64,
    window: usize,
    stride: usize,
    seconds: f64,
    versions: document::Versions,
}

/// The subcommand.
pub(crate) fn run(args: &PerplexityArgs) -> Result<()> {
    let (name, path) = match (&args.paths[..], &args.model.model) {
        ([model, _], Some(_)) => {
            let what = format_args!("the model is given twice, as {model} and by --model");
            return Err(Failure::usage(what));
        }
        ([model, path], None) => (Some(model.clone()), path),
        ([path, ..], model) => (model.clone(), path),
        ([], _) => return Err(Failure::usage("a text file is required")),
    };
    if args.window == Some(0) || args.stride == Some(0) {
        return Err(Failure::usage("--window and --stride must be at least 1"));
    }
    let text = if path == "-" {
        files::read_all_of_stdin()?
    } else {
        files::read_text(&PathBuf::from(path))?
    };
    let (model, _) = load::load(&ModelArgs { model: name, ..args.model.clone() })?;
    let tokens = model.tokenizer()?.encode(&text, true).map_err(Error::from)?;
    if tokens.len() < 2 {
        let what = format_args!("{path}: the text has {} tokens; it takes two", tokens.len());
        return Err(Failure::usage(what));
    }
    let context = model.decoder().max_positions();
    let window = args.window.unwrap_or(WINDOW.min(context));
    let stride = args.stride.unwrap_or(window.div_ceil(2));
    if window > context {
        return Err(Failure::usage(format_args!(
            "--window {window} is more than the model's context of {context} tokens"
        )));
    }
    if stride > window {
        return Err(Failure::usage(format_args!(
            "--stride {stride} is more than --window {window}, so that tokens would be left out"
        )));
    }
    let begun = Instant::now();
    let sum = predict(&model, &tokens, window, stride, &args.steering)?;
    let predicted = (tokens.len() - 1) as f64;
    print(
        args.output.format,
        &Measured {
            file: path.clone(),
            model: model.name().to_owned(),
            tokens: tokens.len(),
            bytes: text.len(),
            sum,
            perplexity: (-sum / predicted).exp(),
            bits_per_byte: -sum / std::f64::consts::LN_2 / text.len() as f64,
            window,
            stride,
            seconds: begun.elapsed().as_secs_f64(),
            versions: document::Versions::OURS,
        },
    )
}

/// Σ log p of the tokens after the first, each predicted once.
///
/// A window is `window` tokens and the one after them. It counts those of its predictions that no
/// window before it made; the others only are what these are predicted from.
fn predict(
    model: &Model,
    tokens: &[u32],
    window: usize,
    stride: usize,
    steering: &SteerArgs,
) -> Result<f64> {
    let mut hook = steering.hook(model)?;
    let count = 1 + (tokens.len() - 1).saturating_sub(window).div_ceil(stride);
    let bar = StepBar::new(count, "windows");
    // The first token that is not predicted yet.
    let (mut sum, mut next) = (0.0, 1);
    for begin in (0..count).map(|it| it * stride) {
        let end = (begin + window + 1).min(tokens.len());
        let mut request = Request::new(tokens[begin..end].to_vec());
        if let Some(hook) = &mut hook {
            request = request.hook(hook);
        }
        let scored = model.score(request)?;
        let fresh = &scored.logprobs[next - begin - 1..];
        sum += fresh.iter().map(|&it| f64::from(it)).sum::<f64>();
        next = end;
        bar.advance();
        bar.say(format!("windows, perplexity {:.3}", (-sum / (next - 1) as f64).exp()));
    }
    Ok(sum)
}

fn print(format: Format, it: &Measured) -> Result<()> {
    if format == Format::Json {
        return document::print(it);
    }
    terminal::line(format_args!("perplexity     {:.4}", it.perplexity))?;
    terminal::line(format_args!("bits per byte  {:.4}", it.bits_per_byte))?;
    terminal::line(format_args!("tokens         {} ({} bytes)", it.tokens, it.bytes))?;
    Ok(terminal::line(format_args!("windows        {} tokens, stride {}", it.window, it.stride))?)
}
