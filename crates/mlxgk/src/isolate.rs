//! `mlxgk isolate`: the KV-cache isolation experiment.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use mlx_genkit::Model;
use mlxgk_isolation::{Condition, Example, Labels, Options, TurnFormat, run as run_experiment};

use crate::{
    failure::{Failure, Result},
    files,
    flags::{Format, ModelArgs, OutputArgs},
    load,
    progress::StepBar,
    terminal,
};

#[derive(Debug, Args)]
pub(crate) struct IsolateArgs {
    /// Example files, or folders of them
    #[arg(required = true, value_name = "FILE|DIR")]
    examples: Vec<PathBuf>,
    /// Conditions to run, all by default: sequential, prompted, turn-marked, turn-reset, semantic,
    /// no-messages, random-partition, shared-prefix, reprefill
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    conditions: Vec<Condition>,
    /// Seed that those of all outputs are derived from
    #[arg(short, long, value_name = "N", default_value = "42")]
    seed: u64,
    /// New tokens per output at most
    #[arg(
        short = 'n',
        long,
        visible_alias = "max-new-tokens",
        value_name = "N",
        default_value = "64"
    )]
    max_tokens: usize,
    /// 0 is greedy; above 0 samples at this temperature
    #[arg(short, long, visible_alias = "temperature", value_name = "T", default_value = "0.7")]
    temp: f64,
    /// Sample from the likeliest tokens that make up this share of the probability
    #[arg(long, value_name = "P", default_value = "0.9")]
    top_p: f64,
    /// How turns become one text; the chat template where the model has one by default
    #[arg(long, value_enum)]
    turns: Option<TurnsArg>,
    /// How turns are put into clusters
    #[arg(long, value_enum, default_value = "given")]
    labels: LabelsArg,
    /// Leave out what needs a look into the model: attention, KL, the terms' log-probabilities
    #[arg(long)]
    no_internals: bool,
    /// Write the report as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as an HTML page, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TurnsArg {
    /// Paragraphs of one text
    Raw,
    /// Messages of the chat template
    Chat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LabelsArg {
    /// As the files say
    Given,
    /// By the clusters' terms
    Keyword,
    /// By the model's hidden states
    Hidden,
}

pub(crate) fn run(args: &IsolateArgs) -> Result<()> {
    if !(args.temp.is_finite() && args.temp >= 0.0) {
        return Err(Failure::usage("--temp must be a number of 0 or more"));
    }
    if args.max_tokens == 0 {
        return Err(Failure::usage("--max-tokens must be at least 1"));
    }
    let mut examples = Vec::new();
    for path in &args.examples {
        examples.extend(read(path)?);
    }
    let (model, _) = load::load(&args.model)?;
    let options = options(args, &model);
    let bar = StepBar::new(1, "runs");
    let report = run_experiment(&model, &examples, &options, |it| bar.set(it.done, it.of))?;
    drop(bar);
    if let Some(file) = &args.json {
        files::write_text(file, &format!("{:#}\n", report.json()))?;
    }
    if let Some(file) = &args.html {
        files::write_text(file, &report.html())?;
    }
    match args.output.format {
        Format::Json => terminal::line(report.json())?,
        Format::Text => terminal::line(&report)?,
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Example>> {
    Ok(match path.is_dir() {
        true => Example::load_folder(path)?,
        false => vec![Example::load(path)?],
    })
}

fn options(args: &IsolateArgs, model: &Model) -> Options {
    let mut options = Options::new(match args.turns {
        Some(TurnsArg::Raw) => TurnFormat::Raw,
        Some(TurnsArg::Chat) => TurnFormat::Chat,
        None => TurnFormat::of(model),
    });
    if !args.conditions.is_empty() {
        options.conditions.clone_from(&args.conditions);
    }
    options.labels = match args.labels {
        LabelsArg::Given => Labels::Given,
        LabelsArg::Keyword => Labels::Keyword,
        LabelsArg::Hidden => Labels::Hidden { layer: None },
    };
    options.seed = args.seed;
    options.internals = !args.no_internals;
    let samples = args.temp > 0.0;
    options.config.do_sample = Some(samples);
    options.config.temperature = samples.then_some(args.temp);
    options.config.top_p = samples.then_some(args.top_p);
    options.config.max_new_tokens = Some(args.max_tokens);
    options
}
