//! `mlxgk explain`: what a request would do, and why.

use clap::Args;
use mlx_genkit::{
    GenerationConfig, Model, Plan, generation_config::Warning, logits_processors::ProcessorList,
    sampling::Chooser,
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    conversation::{Prepared, Rendering},
    document,
    failure::{Failure, Result},
    flags::StreamFormat,
    generate::{self, GenerateArgs},
    load, prompts,
    settings::{Settings, Source},
    terminal,
};

/// The flags: those of `generate`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    generate: GenerateArgs,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Explanation {
    model: String,
    prompts: Vec<ExplainedPrompt>,
    /// The sentence that `generate` would end with; null where it would run.
    refused: Option<String>,
    warnings: Vec<String>,
    /// Null where the settings cannot be merged.
    mode: Option<&'static str>,
    /// Whether tokens appear as they are made.
    streams: Option<bool>,
    /// The merged fields.
    settings: Vec<Setting>,
    #[serde(flatten)]
    steps: Steps,
    versions: document::Versions,
}

#[derive(Debug, Serialize)]
struct ExplainedPrompt {
    /// The text that the model is given; null where the prompt is token ids.
    text: Option<String>,
    /// Null where the request is refused before it is counted.
    tokens: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Setting {
    field: &'static str,
    value: Value,
    from: String,
    #[serde(skip)]
    is_default: bool,
}

/// What happens to the scores of each step, in this order; empty where the request is refused.
#[derive(Debug, Default, Serialize)]
struct Steps {
    processors: Vec<String>,
    warpers: Vec<String>,
    /// What follows the warpers.
    after: Vec<String>,
    /// `argmax`, `draw`, or the search.
    choice: Option<&'static str>,
    max_new_tokens: Option<usize>,
    end_tokens: Vec<u32>,
}

/// The subcommand.
pub(crate) fn run(args: &ExplainArgs) -> Result<()> {
    let args = &args.generate;
    let mut settings = Settings::read(&args.config)?;
    let rendering = Rendering::read(&args.chat.template)?;
    let prompts = prompts::read(&args.prompt)?;
    let model = load::outline(&args.model)?;
    let prompts = prompts::with_chat(prompts, &args.chat, &settings.asked, &model)?;
    let prompts = rendering.prepare(prompts, &model)?;
    let mut explanation = Explanation {
        model: model.name().to_owned(),
        prompts: prompts
            .iter()
            .map(|it| ExplainedPrompt { text: it.text.clone(), tokens: None })
            .collect(),
        refused: None,
        warnings: Vec::new(),
        mode: None,
        streams: None,
        settings: Vec::new(),
        steps: Steps::default(),
        versions: document::Versions::OURS,
    };
    let explained = fill(&mut explanation, args, &mut settings, &model, prompts);
    match explained {
        Ok(()) => {}
        Err(Failure::Usage(what) | Failure::Other(what)) => explanation.refused = Some(what),
        Err(other) => return Err(other),
    }
    match args.format {
        StreamFormat::Text => print(&explanation),
        StreamFormat::Json | StreamFormat::Jsonl => document::print(&explanation),
    }
}

/// Fills in what is known before the first failure.
fn fill(
    explanation: &mut Explanation,
    args: &GenerateArgs,
    settings: &mut Settings,
    model: &Model,
    prompts: Vec<Prepared>,
) -> Result<()> {
    let config = settings.merge(model)?;
    explanation.settings = merged(&config, settings, model);
    let assistant = match &args.assistant.assistant {
        Some(name) => Some(load::outline_beside(name, &args.model)?),
        None => None,
    };
    explanation.mode = Some(config.generation_mode(assistant.is_some()).as_str());
    generate::check(args, &config, &prompts)?;
    let prompts = prompts.into_iter().map(|it| it.prompt).collect();
    let plan = || -> Result<Plan<'_>> {
        let request = generate::request(args, settings, model, prompts, args.seed.seed())?;
        Ok(model.plan(generate::with_assistant(args, request, assistant.as_ref()))?)
    };
    let plan = plan().map_err(|failure| settings.explain(failure, model))?;
    let spelled = |it: &Warning| settings.spelled(&it.to_string(), Some(model));
    explanation.warnings = plan.warnings().iter().map(spelled).collect();
    for (prompt, ids) in explanation.prompts.iter_mut().zip(plan.prompts()) {
        prompt.tokens = Some(ids.len());
    }
    explanation.streams = Some(plan.streams());
    explanation.steps = steps(&plan)?;
    Ok(())
}

/// The merged fields in HF's order.
fn merged(config: &GenerationConfig, settings: &Settings, model: &Model) -> Vec<Setting> {
    let setting = |field| {
        let value = config.get(field)?;
        let source = settings.source(field, model);
        let is_default = source == Source::Default;
        Some(Setting { field, value, from: source.to_string(), is_default })
    };
    GenerationConfig::FIELDS.iter().copied().filter_map(setting).collect()
}

fn steps(plan: &Plan<'_>) -> Result<Steps> {
    let (resolved, rules) = (plan.resolved(), plan.rules());
    let pipeline = resolved.pipeline(plan.vocab_size()).map_err(Failure::usage)?;
    let is_drawn = matches!(rules.chooser, Chooser::Sample(_));
    let names =
        |list: &ProcessorList| list.iter().map(|it| it.name().to_owned()).collect::<Vec<_>>();
    Ok(Steps {
        processors: names(&rules.processors),
        warpers: if is_drawn {
            pipeline.warpers.warpers().iter().map(|it| it.name().to_owned()).collect()
        } else {
            Vec::new()
        },
        after: if is_drawn { names(&pipeline.after) } else { Vec::new() },
        choice: Some(match (plan.streams(), is_drawn) {
            (true, true) => "draw",
            (true, false) => "argmax",
            (false, _) => "beams",
        }),
        max_new_tokens: Some(rules.stop.limits().max_new_tokens),
        end_tokens: rules.stop.limits().eos.clone(),
    })
}

fn print(it: &Explanation) -> Result<()> {
    let line = |name: &str, text: &str| terminal::line(format_args!("{name:<12}{text}"));
    match &it.refused {
        Some(what) => line("refused", what)?,
        None => line("refused", "no: it would run")?,
    }
    for warning in &it.warnings {
        line("warning", warning)?;
    }
    line("model", &it.model)?;
    for (index, prompt) in it.prompts.iter().enumerate() {
        let count =
            prompt.tokens.map_or_else(|| "not counted".to_owned(), |it| format!("{it} tokens"));
        line("prompt", &format!("{index}: {count}"))?;
    }
    if let Some(mode) = it.mode {
        line("mode", mode)?;
    }
    for (index, it) in it.settings.iter().filter(|it| !it.is_default).enumerate() {
        let name = if index == 0 { "settings" } else { "" };
        line(name, &format!("{} = {}  ({})", it.field, it.value, it.from))?;
    }
    let defaults: Vec<String> = it.settings.iter().filter(|it| it.is_default).map(shown).collect();
    if !defaults.is_empty() {
        line("defaults", &defaults.join(", "))?;
    }
    for (name, list) in [
        ("processors", &it.steps.processors),
        ("warpers", &it.steps.warpers),
        ("after", &it.steps.after),
    ] {
        for (index, it) in list.iter().enumerate() {
            line(if index == 0 { name } else { "" }, &format!("{}. {it}", index + 1))?;
        }
    }
    if let Some(choice) = it.steps.choice {
        line("choice", choice)?;
    }
    if let Some(count) = it.steps.max_new_tokens {
        let ends: Vec<String> = it.steps.end_tokens.iter().map(u32::to_string).collect();
        let ends = if ends.is_empty() { "none".to_owned() } else { ends.join(", ") };
        line("stops", &format!("after {count} new tokens, or at an end token ({ends})"))?;
    }
    Ok(())
}

fn shown(it: &Setting) -> String {
    format!("{} = {}", it.field, it.value)
}
