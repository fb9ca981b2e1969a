//! `mlxgk convert`.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, ValueEnum};
use mlxgk_model_hub::{
    Conversion, Converted, Float, Layout, Mode, Recipe, Rule, Scheme, convert as convert_folder,
};
use serde::Serialize;

use crate::{
    document,
    evaluate::{self, Evaluation},
    failure::{Failure, Result},
    files,
    flags::{DeviceArg, Format, OutputArgs},
    info::{bytes, thousands},
    load,
    progress::DownloadBars,
    terminal,
};

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Model: a folder, or a hub id such as Qwen/Qwen3-0.6B, which is downloaded first
    #[arg(value_name = "MODEL")]
    model: String,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Dtype of weights that are not quantized: float32, float16 or bfloat16; by default that of
    /// config.json, else of each tensor
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Float>,
    /// Layout of the result
    #[arg(long, value_enum, default_value = "mlx")]
    to: To,
    /// Never use the network: only models on this machine
    #[arg(long)]
    offline: bool,
    /// Compare the result with the model on a text file: perplexity of both, and KL divergence
    #[arg(long, value_name = "FILE")]
    evaluate: Option<PathBuf>,
    /// Where to evaluate; the GPU where there is one by default
    #[arg(long, value_enum)]
    device: Option<DeviceArg>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    quantization: QuantizationArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Quantization")]
struct QuantizationArgs {
    /// Bits per weight: 2, 3, 4, 5, 6 or 8; 4 by default
    #[arg(long, value_name = "N", conflicts_with_all = ["recipe", "dequantize"])]
    bits: Option<usize>,
    /// Weights that share a scale: 32, 64 or 128; 64 by default
    #[arg(long, value_name = "N", conflicts_with = "dequantize")]
    group_size: Option<usize>,
    /// Quantization mode: affine, mxfp4, mxfp8 or nvfp4; the last three have fixed bits
    #[arg(long, value_name = "MODE", conflicts_with_all = ["recipe", "dequantize"])]
    mode: Option<Mode>,
    /// Mixed precision, with more bits where they matter: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6
    #[arg(long, value_name = "NAME", conflicts_with = "dequantize")]
    recipe: Option<Recipe>,
    /// How to quantize modules whose path matches: GLOB=BITS, GLOB=BITS,GROUP, GLOB=MODE or GLOB=dense;
    /// repeatable, and the last one that matches counts
    #[arg(long, value_name = "RULE", conflicts_with = "dequantize")]
    rule: Vec<Rule>,
    /// A file with one rule per line, before those of --rule
    #[arg(long, value_name = "FILE", conflicts_with = "dequantize")]
    rules_file: Option<PathBuf>,
    /// Dequantize to floats
    #[arg(long)]
    dequantize: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// As mlx-lm writes: the experts of a layer are one tensor
    Mlx,
    /// As transformers writes: a tensor per expert
    Hf,
}

/// The JSON document.
#[derive(Debug, Serialize)]
struct Document<'a> {
    model: &'a str,
    out: String,
    /// Whether an earlier run had made it.
    was_there: bool,
    parameters: u64,
    bytes: u64,
    bits_per_weight: f64,
    quantized_modules: usize,
    left_out: BTreeMap<&'a str, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation: Option<Evaluation>,
}

/// The subcommand.
pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    let conversion = conversion(args)?;
    let text = args.evaluate.as_deref().map(files::read_text).transpose()?;
    let folder = load::find(&args.model, args.offline)?;
    // Which tensors a family has is known by its graph alone.
    load::check(&folder, args.device)?;
    // What the evaluation takes is looked for before anything is written.
    let tokens = text.map(|it| evaluate::tokens(&folder, &it)).transpose()?;
    let made = convert_folder(&folder, &args.out, &conversion, &mut DownloadBars::default())?;
    let evaluation = match &tokens {
        Some(tokens) => Some(evaluate::compare([&folder, &made.folder], tokens, args.device)?),
        None => None,
    };
    match args.output.format {
        Format::Json => document::print(&Document {
            model: &args.model,
            out: made.folder.display().to_string(),
            was_there: made.was_there,
            parameters: made.parameters,
            bytes: made.bytes,
            bits_per_weight: made.bits_per_weight(),
            quantized_modules: made.quantized,
            left_out: made.left_out.iter().map(|(part, count)| (part.as_str(), *count)).collect(),
            evaluation,
        }),
        Format::Text => print(&made, evaluation.as_ref()),
    }
}

/// The settings that the flags name.
fn conversion(args: &ConvertArgs) -> Result<Conversion> {
    let flags = &args.quantization;
    let mut conversion = Conversion::new().layout(match args.to {
        To::Mlx => Layout::Mlx,
        To::Hf => Layout::HuggingFace,
    });
    if let Some(dtype) = args.dtype {
        conversion = conversion.dtype(dtype);
    }
    if flags.dequantize {
        return Ok(conversion.dequantize());
    }
    let mut rules = match &flags.rules_file {
        Some(path) => Rule::list(&files::read_text(path)?)
            .map_err(|e| Failure::usage(format_args!("--rules-file {}: {e}", path.display())))?,
        None => Vec::new(),
    };
    rules.extend(flags.rule.iter().cloned());
    if let Some(recipe) = flags.recipe {
        conversion = conversion.recipe(recipe, flags.group_size)?;
    } else if flags.bits.is_some()
        || flags.group_size.is_some()
        || flags.mode.is_some()
        || !rules.is_empty()
    {
        let mode = flags.mode.unwrap_or(Mode::Affine);
        conversion = conversion.quantize(Scheme::new(mode, flags.bits, flags.group_size)?);
    }
    Ok(rules.into_iter().fold(conversion, Conversion::rule))
}

fn print(made: &Converted, evaluation: Option<&Evaluation>) -> Result<()> {
    let mut rows = vec![
        (if made.was_there { "was there" } else { "made" }, made.folder.display().to_string()),
        ("parameters", thousands(made.parameters as usize)),
        ("weights", bytes(made.bytes as usize)),
        ("bits per weight", format!("{:.3}", made.bits_per_weight())),
        ("quantized", format!("{} modules", made.quantized)),
    ];
    if !made.left_out.is_empty() {
        let parts = made.left_out.iter().map(|(part, count)| format!("{part} ({count} tensors)"));
        rows.push(("left out", parts.collect::<Vec<_>>().join(", ")));
    }
    if let Some(it) = evaluation {
        let change =
            format!("{:.4} before, {:.4} after", it.perplexity.before, it.perplexity.after);
        rows.push(("perplexity", change));
        rows.push(("KL divergence", format!("{:.6} nats per token", it.kl)));
    }
    for (name, value) in rows {
        terminal::line(format_args!("{name:<16} {value}"))?;
    }
    Ok(())
}
