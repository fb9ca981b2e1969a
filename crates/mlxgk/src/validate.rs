//! `mlxgk validate`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use mlx_genkit::{GenerationConfig, Message, Model, Prompt};
use mlxgk_validation::{Options, WordLists, news_prompts, validate};
use serde_json::Value;

use crate::{
    args::{Format, ModelArgs},
    failure::{Failure, Result},
    load,
    progress::StepBar,
    steering::SteerArgs,
    terminal,
};

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    steering: SteerArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Strengths to run, as factors on ALPHA
    #[arg(long, value_name = "A,A,...", value_delimiter = ',', default_value = "0.5,1,1.5,2")]
    alphas: Vec<f64>,
    /// Seeds to run
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// Prompts: a JSON array of texts, or a text or {"prompt": TEXT} per line; without it, the bundled
    /// pieces of news
    #[arg(long, value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// System prompt; makes every prompt a user's message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Word lists by voice: a JSON object of arrays
    #[arg(long, value_name = "FILE", requires = "voice")]
    words: Option<PathBuf>,
    /// The voice among the word lists whose share is counted
    #[arg(long, value_name = "NAME", requires = "words")]
    voice: Option<String>,
    /// New tokens per answer at most
    #[arg(long, value_name = "N", default_value = "64")]
    max_tokens: usize,
    /// 0 is greedy; above 0 samples at this temperature
    #[arg(long, value_name = "T", default_value = "0.8")]
    temp: f64,
    /// Leave out the random direction and the negated vector
    #[arg(long)]
    no_controls: bool,
    /// Write the report as an HTML page, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

pub(crate) fn run(args: &ValidateArgs) -> Result<()> {
    if !(args.temp.is_finite() && args.temp >= 0.0) {
        return Err(Failure::usage("--temp must be a number of 0 or more"));
    }
    let (model, _) = load::load(&args.model)?;
    let steering = args.steering.steering(&model)?;
    let prompts = match &args.prompts_file {
        None => news_prompts(),
        Some(file) => read_prompts(file)?,
    };
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
        words: words(args)?,
        ..Options::new(with_chat(prompts, args.system.as_deref(), &model))
    };
    let bar = StepBar::new(1, "cells");
    let report = validate(&model, &steering, &options, |it| bar.set(it.done, it.of))?;
    drop(bar);
    if let Some(file) = &args.html {
        let temporary = file.with_extension("part");
        fs::write(&temporary, report.html())
            .and_then(|()| fs::rename(&temporary, file))
            .map_err(|e| Failure::other(format_args!("cannot write {}: {e}", file.display())))?;
    }
    match args.format {
        Format::Json => terminal::line(report.json())?,
        Format::Text => terminal::line(&report)?,
    }
    Ok(())
}

fn words(args: &ValidateArgs) -> Result<Option<WordLists>> {
    let (Some(file), Some(voice)) = (&args.words, &args.voice) else { return Ok(None) };
    let lists = WordLists::from_json(&text_of(file)?, voice);
    Ok(Some(lists.map_err(|e| Failure::usage(format_args!("{}: {e}", file.display())))?))
}

fn read_prompts(file: &Path) -> Result<Vec<Prompt>> {
    let text = text_of(file)?;
    let name = file.display();
    let wrong = |what: &str| Failure::usage(format_args!("{name}: {what}"));
    if text.trim_start().starts_with('[') {
        let prompts: Vec<String> = serde_json::from_str(&text)
            .map_err(|e| wrong(&format!("is not a JSON array of texts: {e}")))?;
        return Ok(prompts.into_iter().map(Prompt::Text).collect());
    }
    let lines = text.lines().enumerate().filter(|(_, it)| !it.trim().is_empty());
    let prompt = |(line, text): (usize, &str)| {
        if !text.starts_with('{') {
            return Ok(Prompt::from(text));
        }
        let value: Option<Value> = serde_json::from_str(text).ok();
        let prompt = value.and_then(|it| it["prompt"].as_str().map(Prompt::from));
        prompt.ok_or_else(|| wrong(&format!("line {} is no {{\"prompt\": TEXT}}", line + 1)))
    };
    lines.map(prompt).collect()
}

fn text_of(file: &Path) -> Result<String> {
    fs::read_to_string(file)
        .map_err(|e| Failure::other(format_args!("cannot read {}: {e}", file.display())))
}

/// User's messages, where the model can chat.
fn with_chat(prompts: Vec<Prompt>, system: Option<&str>, model: &Model) -> Vec<Prompt> {
    if !model.has_chat_template() {
        return prompts;
    }
    let dress = |prompt| match prompt {
        Prompt::Text(text) => {
            let system = system.map(|it| Message::new("system", it));
            Prompt::Messages(system.into_iter().chain([Message::new("user", text)]).collect())
        }
        other => other,
    };
    prompts.into_iter().map(dress).collect()
}
