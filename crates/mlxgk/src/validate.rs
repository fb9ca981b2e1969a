//! `mlxgk validate`.

use std::path::PathBuf;

use clap::Args;
use mlx_genkit::{GenerationConfig, generation_config::RequestFields};
use mlxgk_validation::{Options, WordLists, news_prompts, validate};

use crate::{
    conversation::Rendering,
    failure::{Failure, Result},
    files,
    flags::{ChatArgs, Format, ModelArgs, OutputArgs, SteerArgs},
    load,
    progress::StepBar,
    prompts, terminal,
};

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Strengths to test, as factors of ALPHA
    #[arg(long, value_name = "A,A,...", value_delimiter = ',', default_value = "0.5,1,1.5,2")]
    alphas: Vec<f64>,
    /// Seeds to test
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// Prompts, as `generate` takes them; the bundled pieces of news by default
    #[arg(long, value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// Word lists by voice: a JSON object of arrays
    #[arg(long, value_name = "FILE", requires = "voice")]
    words: Option<PathBuf>,
    /// The voice whose share of words is counted
    #[arg(long, value_name = "NAME", requires = "words")]
    voice: Option<String>,
    /// Maximum number of new tokens per answer
    #[arg(
        short = 'n',
        long,
        visible_alias = "max-new-tokens",
        value_name = "N",
        default_value = "64"
    )]
    max_tokens: usize,
    /// 0 is greedy; above 0 samples at this temperature
    #[arg(short, long, visible_alias = "temperature", value_name = "T", default_value = "0.8")]
    temp: f64,
    /// Skip the controls: random directions and the negated vector
    #[arg(long)]
    no_controls: bool,
    /// Random control directions; their mean and spread are reported
    #[arg(long, value_name = "N", default_value = "3", conflicts_with = "no_controls")]
    random_draws: usize,
    /// Also write the report as an HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    steering: SteerArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &ValidateArgs) -> Result<()> {
    if !(args.temp.is_finite() && args.temp >= 0.0) {
        return Err(Failure::usage("--temp must be a number of 0 or more"));
    }
    let rendering = Rendering::read(&args.chat.template)?;
    let (model, _) = load::load(&args.model)?;
    let steering = args.steering.steering(&model)?;
    let prompts = match &args.prompts_file {
        None => news_prompts(),
        Some(file) => prompts::read_file(file)?,
    };
    let prompts = prompts::with_chat(prompts, &args.chat, &RequestFields::default(), &model)?;
    let prompts = rendering.prepare(prompts, &model)?.into_iter().map(|it| it.prompt).collect();
    let options = Options {
        alphas: args.alphas.clone(),
        seeds: args.seeds.clone(),
        config: GenerationConfig {
            do_sample: Some(args.temp > 0.0),
            temperature: (args.temp > 0.0).then_some(args.temp),
            top_k: Some(0),
            max_new_tokens: Some(args.max_tokens),
            ..GenerationConfig::default()
        },
        controls: !args.no_controls,
        random_draws: args.random_draws,
        words: words(args)?,
        ..Options::new(prompts)
    };
    let bar = StepBar::new(1, "texts");
    let report = validate(&model, &steering, &options, |it| bar.set(it.done, it.of))?;
    drop(bar);
    if let Some(file) = &args.html {
        files::write_text(file, &report.html())?;
    }
    match args.output.format {
        Format::Json => terminal::line(report.json())?,
        Format::Text => terminal::line(&report)?,
    }
    Ok(())
}

fn words(args: &ValidateArgs) -> Result<Option<WordLists>> {
    let (Some(file), Some(voice)) = (&args.words, &args.voice) else { return Ok(None) };
    let lists = WordLists::from_json(&files::read_text(file)?, voice);
    Ok(Some(lists.map_err(|e| Failure::usage(format_args!("{}: {e}", file.display())))?))
}
