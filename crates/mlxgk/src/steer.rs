//! `mlxgk steer`: extracts, shows and converts steering vectors.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mlx_genkit::{
    Contrast, ContrastPair, HookPoint, Model,
    steering::{
        Format as FileFormat, SteeringVectors,
        extract::{LayerReport, Method, Pair, Read, read_pairs},
    },
};
use serde_json::{Value, json};

use crate::{
    failure::{Failure, Result},
    files::{named, read_text},
    flags::{Format, ModelArgs, OutputArgs, steering_failure},
    load,
    progress::StepBar,
    terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum SteerCommand {
    /// Extract steering vectors from contrast pairs
    #[command(after_help = "\
A pair is a line of JSON: {\"positive\": TEXT, \"negative\": TEXT}, with {\"prompt\": TEXT} or
{\"messages\": [...]} where both answer the same; either side may also be a conversation that ends
with the answer.

Examples:
  mlxgk steer extract --pairs joy.jsonl --out joy.safetensors
  mlxgk steer extract -m ./qwen3 --pairs joy.jsonl --read last --out joy.safetensors
  mlxgk steer extract --positive glad.txt --negative sad.txt --out joy.safetensors")]
    Extract(ExtractArgs),
    /// Show what a steering file holds: norm, dose and separation per layer
    #[command(after_help = "\
Example:
  mlxgk steer show joy.safetensors")]
    Show(ShowArgs),
    /// Convert another project's vectors to a steering file
    #[command(after_help = "\
Formats: gguf (repeng, llama.cpp), gguf-generator (llama.cpp's cvector-generator, which counts
layers one too high), persona (npz, npy or safetensors of shape [layers + 1, hidden]), svec,
svec-applied.

Examples:
  mlxgk steer import joy.gguf --out joy.safetensors
  mlxgk steer import joy.npz --from persona --out joy.safetensors")]
    Import(ImportArgs),
    /// Convert a steering file to another project's format
    #[command(after_help = "\
Example:
  mlxgk steer export joy.safetensors --out joy.gguf --model-hint qwen3")]
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pairs: PairArgs,
    /// The steering file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// mean-diff, pca-diff-centered, pca-diff-uncentered, pca-pair-centered, pca-global-centered or
    /// logistic-probe
    #[arg(long, value_name = "METHOD", default_value = "mean-diff")]
    method: Method,
    /// Tokens of the answers to read: response (the mean over all), last, or a range A..B (without B)
    #[arg(long, value_name = "TOKENS", default_value = "response", allow_hyphen_values = true)]
    read: Read,
    /// System prompt for pairs that have none
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Share of the pairs held out to test the vectors on
    #[arg(long, value_name = "SHARE", default_value = "0.2")]
    held_out: f64,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct PairArgs {
    /// Contrast pairs, one JSON object per line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["positive", "negative"])]
    pairs: Option<PathBuf>,
    /// Positive texts, one per line, in the order of the negative ones
    #[arg(long, value_name = "FILE", requires = "negative")]
    positive: Option<PathBuf>,
    /// Negative texts, one per line
    #[arg(long, value_name = "FILE", requires = "positive")]
    negative: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The steering file
    file: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The file to read
    file: PathBuf,
    /// Its format (default: what its name suggests)
    #[arg(long, value_name = "FORMAT")]
    from: Option<FileFormat>,
    /// The steering file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The steering file
    file: PathBuf,
    /// The format to write (default: what the name of --out suggests)
    #[arg(long, value_name = "FORMAT")]
    to: Option<FileFormat>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Name of the model the vectors are for
    #[arg(long, value_name = "NAME")]
    model_hint: Option<String>,
}

pub(crate) fn run(command: &SteerCommand) -> Result<()> {
    match command {
        SteerCommand::Extract(args) => extract(args),
        SteerCommand::Show(args) => {
            let vectors = named(SteeringVectors::load(&args.file))?;
            show(&vectors, args.output.format)
        }
        SteerCommand::Import(args) => import(args),
        SteerCommand::Export(args) => export(args),
    }
}

fn extract(args: &ExtractArgs) -> Result<()> {
    let pairs = contrast_pairs(&args.pairs)?;
    let (model, _) = load::load(&args.model)?;
    let tokens = |(index, pair): (usize, &ContrastPair)| {
        let system = args.system.as_deref();
        pair.tokens(&model, system).map_err(|e| Failure::usage(format_args!("pair {index}: {e}")))
    };
    let pairs: Vec<Pair> = pairs.iter().enumerate().map(tokens).collect::<Result<_>>()?;
    let bar = StepBar::new(pairs.len(), "pairs");
    let readings = read_pairs(model.decoder(), &pairs, args.read, || bar.advance())
        .map_err(steering_failure)?;
    drop(bar);
    let extraction = readings.extract(args.method, args.held_out).map_err(steering_failure)?;
    let vectors = extraction
        .vectors
        .note("model", name(&model))
        .note("read", args.read.to_string())
        .note("pairs", extraction.trained_on.to_string())
        .note("held_out", extraction.held_out.to_string());
    vectors.save(&args.out).map_err(steering_failure)?;
    show(&vectors, args.output.format)
}

/// The model's name without where it lies.
fn name(model: &Model) -> String {
    let path = Path::new(model.name());
    path.file_name().map_or_else(|| model.name().to_owned(), |it| it.to_string_lossy().into_owned())
}

fn contrast_pairs(args: &PairArgs) -> Result<Vec<ContrastPair>> {
    if let Some(file) = &args.pairs {
        let place = |line: usize| format!("{}, line {}", file.display(), line + 1);
        let text = read_text(file)?;
        let lines = text.lines().enumerate().filter(|(_, it)| !it.trim().is_empty());
        let pairs = lines.map(|(line, text)| {
            let value: Value = serde_json::from_str(text).map_err(|e| {
                Failure::usage(format_args!("{} is not valid JSON: {e}", place(line)))
            })?;
            ContrastPair::from_json(&value)
                .map_err(|e| Failure::usage(format_args!("{}: {e}", place(line))))
        });
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        return match pairs.is_empty() {
            true => Err(Failure::usage(format_args!("{} does not contain a pair", file.display()))),
            false => Ok(pairs),
        };
    }
    let (Some(positive), Some(negative)) = (&args.positive, &args.negative) else {
        return Err(Failure::usage("pairs are needed: --pairs, or --positive and --negative"));
    };
    let texts = |file: &Path| -> Result<Vec<Contrast>> {
        let text = read_text(file)?;
        let lines = text.lines().filter(|it| !it.trim().is_empty());
        Ok(lines.map(|it| Contrast::Text(it.to_owned())).collect())
    };
    let (ours, theirs) = (texts(positive)?, texts(negative)?);
    if ours.len() != theirs.len() {
        return Err(Failure::usage(format_args!(
            "{} has {} texts and {} has {}; they must pair up line by line",
            positive.display(),
            ours.len(),
            negative.display(),
            theirs.len()
        )));
    }
    let pairs = ours.into_iter().zip(theirs);
    Ok(pairs.map(|(positive, negative)| ContrastPair { positive, negative }).collect())
}

fn import(args: &ImportArgs) -> Result<()> {
    let format = args.from.map_or_else(|| named(FileFormat::of(&args.file)), Ok)?;
    let vectors = named(format.import(&args.file))?;
    vectors.save(&args.out).map_err(steering_failure)?;
    show(&vectors, Format::Text)
}

fn export(args: &ExportArgs) -> Result<()> {
    let format = args.to.map_or_else(|| named(FileFormat::of(&args.out)), Ok)?;
    let vectors = named(SteeringVectors::load(&args.file))?;
    let known = vectors.metadata().get("model").cloned();
    let model = args.model_hint.clone().or(known).unwrap_or_default();
    let left = format.export(&vectors, &model, &args.out).map_err(steering_failure)?;
    if !left.is_empty() {
        let left: Vec<String> = left.iter().map(HookPoint::to_string).collect();
        let left = left.join(", ");
        terminal::warning(&format!("a {format} file has no place for {left}; not exported"));
    }
    Ok(())
}

/// A table of the places, and what is known of them as bars.
fn show(vectors: &SteeringVectors, format: Format) -> Result<()> {
    let reports = LayerReport::of(vectors);
    let report =
        |point: HookPoint| reports.iter().find(|it| point == HookPoint::ResidPost(it.layer));
    if format == Format::Json {
        let places: Vec<Value> = vectors
            .iter()
            .map(|(point, _)| {
                let mut place = report(point).map_or_else(|| json!({}), LayerReport::json);
                place["name"] = json!(point.to_string());
                place["norm"] = json!(vectors.norm(point));
                place["dose"] = json!(report(point).map(LayerReport::dose));
                place
            })
            .collect();
        let notes: serde_json::Map<String, Value> =
            notes(vectors).map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
        let document = json!({"hidden": vectors.width(), "notes": notes, "vectors": places});
        return Ok(terminal::line(document)?);
    }
    for (key, value) in notes(vectors) {
        terminal::line(format_args!("{key}: {value}"))?;
    }
    terminal::line(format_args!("hidden: {}", vectors.width()))?;
    terminal::line(format_args!(
        "{:<14}{:>10}{:>8}{:>11}{:>9}{:>7}",
        "place", "norm", "dose", "explained", "accuracy", "AUROC"
    ))?;
    let shown = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |it| format!("{it:.digits$}"))
    };
    for (point, _) in vectors.iter() {
        let it = report(point);
        terminal::line(format_args!(
            "{:<14}{:>10.4}{:>8}{:>11}{:>9}{:>7}",
            point.to_string(),
            vectors.norm(point),
            shown(it.map(LayerReport::dose), 3),
            shown(it.map(|it| it.explained_variance), 3),
            shown(it.and_then(|it| it.accuracy), 3),
            shown(it.and_then(|it| it.auroc), 3),
        ))?;
    }
    let places: Vec<(String, f64)> =
        vectors.iter().map(|(point, _)| (point.to_string(), vectors.norm(point))).collect();
    plot("norm", &places)?;
    let of = |value: fn(&LayerReport) -> Option<f64>| -> Vec<(String, f64)> {
        let bar = |it: &LayerReport| Some((format!("resid_post.{}", it.layer), value(it)?));
        reports.iter().filter_map(bar).collect()
    };
    plot("dose (norm relative to the stream's)", &of(|it| Some(it.dose())))?;
    plot("separation (AUROC on held-out pairs)", &of(|it| it.auroc))
}

/// The notes that people read; the report is shown as a table.
fn notes(vectors: &SteeringVectors) -> impl Iterator<Item = (&str, &str)> {
    let shown = |key: &str| key != "report" && key != "explained_variance";
    vectors.metadata().iter().map(|(a, b)| (a.as_str(), b.as_str())).filter(move |it| shown(it.0))
}

/// Horizontal bars, the longest as long as the largest value.
fn plot(title: &str, bars: &[(String, f64)]) -> Result<()> {
    const LENGTH: f64 = 40.0;
    let most = bars.iter().map(|it| it.1).fold(0.0, f64::max);
    if bars.len() < 2 || most <= 0.0 {
        return Ok(());
    }
    terminal::line(format_args!("\n{title}"))?;
    for (name, value) in bars {
        let bar = "█".repeat((value / most * LENGTH).round() as usize);
        terminal::line(format_args!("{name:<14}{bar} {value:.3}"))?;
    }
    Ok(())
}
