//! `mlxgk generate`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use mlx_genkit::{
    Assistant, AssistedRequest, FinishReason, Generation, GenerationConfig, Guardrails, Model,
    Prompt, Request, Seed, Sequence, TokenStream, steering::Layers,
};

use crate::{
    cache,
    conversation::{Prepared, Rendering},
    document::{self, About, Generated, PieceLine, tokens_per_second},
    failure::{Failure, Result},
    flags::{
        AssistantArgs, ChatArgs, ConfigArgs, ModelArgs, PromptArgs, SeedArgs, SoftPromptArgs,
        SteerArgs, StreamFormat, flag_of, number,
    },
    load,
    progress::{Spinner, TokenBar},
    prompts,
    settings::Settings,
    terminal,
};

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) chat: ChatArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) seed: SeedArgs,
    #[command(flatten)]
    pub(crate) assistant: AssistantArgs,
    /// Negative prompt of --guidance-scale; the prompt's last token by default
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Helpers")]
    negative_prompt: Option<String>,
    #[command(flatten)]
    steering: SteerArgs,
    /// Draw an answer once more that looks degenerate (loops, LaTeX, long runs of digits, control
    /// characters) or, under steering, is the unsteered one
    #[arg(long, help_heading = "Steering")]
    guardrails: bool,
    #[command(flatten)]
    soft_prompt: SoftPromptArgs,
    /// Resume this file (of `mlxgk cache build`, or mlx-lm's) as far as the prompt begins like it
    #[arg(long, value_name = "FILE", help_heading = "Cache")]
    prompt_cache: Option<PathBuf>,
    /// Add to the JSON the log-probability of each token and of the N most likely ones
    #[arg(long, value_name = "N", help_heading = "Output")]
    logprobs: Option<usize>,
    /// Add to the JSON the residual stream that each token was chosen from: `all` layers, or e.g.
    /// 0,4,8 or 0..4; 0 is the embeddings, the last the output of the final norm
    /// (output_hidden_states)
    #[arg(long, value_name = "LAYERS", help_heading = "Output")]
    hidden_states: Option<Layers>,
    /// Add to the JSON the attention weights that each token was chosen with: those of `all`
    /// layers, or e.g. 0,3 or 0..4 (output_attentions)
    #[arg(long, value_name = "LAYERS", help_heading = "Output")]
    attentions: Option<Layers>,
    /// What to print
    #[arg(long, value_enum, default_value = "text", help_heading = "Output")]
    pub(crate) format: StreamFormat,
}

/// The subcommand.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let mut settings = Settings::read(&args.config)?;
    let rendering = Rendering::read(&args.chat.template)?;
    let prompts = prompts::read(&args.prompt)?;
    let (model, loaded) = load::load(&args.model)?;
    let prompts = prompts::with_chat(prompts, &args.chat, &settings.asked, &model)?;
    let prompts = rendering.prepare(prompts, &model)?;
    let config = settings.merge(&model)?;
    check(args, &config, &prompts)?;
    serve(args, &settings, &config, &model, prompts, loaded)
        .map_err(|failure| settings.explain(failure, &model))
}

/// What the command line asks for and nothing can do.
pub(crate) fn check(
    args: &GenerateArgs,
    config: &GenerationConfig,
    prompts: &[Prepared],
) -> Result<()> {
    let hidden = args.hidden_states.is_some() || config.output_hidden_states == Some(true);
    let attentions = args.attentions.is_some() || config.output_attentions == Some(true);
    for (is_wanted, what) in [(hidden, "hidden states"), (attentions, "attention weights")] {
        if is_wanted && args.format == StreamFormat::Text {
            let what = format_args!("{what} are part of the JSON output: add `--format json`");
            return Err(Failure::usage(what));
        }
    }
    if config.token_healing == Some(true) && prompts.iter().any(|it| it.rendered) {
        let what = "`token_healing` continues the last word of a text, which the chat template has \
                    closed: add `--no-auto-chat`";
        return Err(Failure::usage(what));
    }
    if args.config.trim_stop && config.stop_strings.is_none() {
        let stop = flag_of("stop_strings");
        return Err(Failure::usage(format_args!("--trim-stop needs a stop string: add {stop}")));
    }
    Ok(())
}

fn serve(
    args: &GenerateArgs,
    settings: &Settings,
    config: &GenerationConfig,
    model: &Model,
    prompts: Vec<Prepared>,
    loaded: Duration,
) -> Result<()> {
    let (prompts, texts): (Vec<Prompt>, Vec<_>) =
        prompts.into_iter().map(|it| (it.prompt, it.text)).unzip();
    let live = args.format == StreamFormat::Text;
    if live && args.chat.template.show_prompt {
        show_prompts(&prompts, &texts, model)?;
    }
    let draft = args.assistant.assistant.as_ref().or(settings.asked.draft_model.as_ref());
    let assistant = match draft {
        Some(name) => Some(load::load_beside(name, &args.model)?),
        None => None,
    };
    let seed = args.seed.seed();
    let asked = prompts.clone();
    let request = request(args, settings, model, prompts, seed)?;
    let mut request = with_assistant(args, request, assistant.as_ref());

    if args.guardrails {
        let base = match args.steering.hook(model)? {
            Some(_) => Some(unsteered(args, settings, model, asked, assistant.as_ref(), seed)?),
            None => None,
        };
        let guardrails = Guardrails::new();
        request = request.guardrails(match base {
            Some(base) => guardrails.differing_from(base),
            None => guardrails,
        });
    }
    let mode = config.generation_mode(assistant.is_some());
    let mut warnings = Vec::new();
    let mut warn = |warning: &dyn std::fmt::Display| {
        let warning = settings.spelled(&warning.to_string(), Some(model));
        terminal::warning(&warning);
        warnings.push(warning);
    };
    settings.notes.iter().for_each(|it| warn(it));
    let (generation, shown) = if mode.streams() && !args.guardrails {
        let spinner = Spinner::new("reading the prompt");
        let mut stream = model.stream(request)?;
        stream.prefill()?;
        drop(spinner);
        stream.warnings().iter().for_each(|it| warn(it));
        // A single sequence is printed as it is made.
        let live = live && stream.num_sequences() == 1;
        let generation = match args.format {
            _ if live => show(stream, model)?,
            StreamFormat::Jsonl => print_pieces(stream)?,
            _ => gather(stream)?,
        };
        (generation, live)
    } else {
        let spinner = Spinner::new(if args.guardrails { "drawing" } else { "searching" });
        let generation = model.generate(request)?;
        drop(spinner);
        generation.warnings.iter().for_each(|it| warn(it));
        (generation, false)
    };
    if let Some(warning) = cut_off(&generation, config) {
        warn(&warning);
    }
    generation.sequences.iter().filter_map(verdict).for_each(|it| warn(&it));
    let about = About {
        loaded,
        mode: mode.as_str(),
        seed: (config.do_sample == Some(true)).then(|| number(seed)),
        warnings,
        is_cached: args.prompt_cache.is_some(),
        prompts: args.chat.template.show_prompt.then_some(texts),
        settings: config.to_json(),
    };
    match args.format {
        StreamFormat::Json | StreamFormat::Jsonl => {
            document::print(&Generated::new(&generation, &about))?;
        }
        StreamFormat::Text if shown => {}
        StreamFormat::Text => print_all(&generation, model)?,
    }
    terminal::note(&summary(&generation, &about));
    Ok(())
}

/// The request that the flags ask for, without its assistant.
pub(crate) fn request<'a>(
    args: &GenerateArgs,
    settings: &Settings,
    model: &'a Model,
    prompts: Vec<Prompt>,
    seed: Seed,
) -> Result<Request<'a>> {
    let cache = match (&args.prompt_cache, &prompts[..]) {
        (Some(path), [prompt]) => Some(cache::for_prompt(path, prompt, model)?),
        (Some(_), _) => return Err(Failure::usage("--prompt-cache serves a single prompt")),
        (None, _) => None,
    };
    let mut request = plain(args, settings, prompts, seed)?.trim_stop(args.config.trim_stop);
    if let Some(top) = args.logprobs {
        request = request.logprobs(top);
    }
    if let Some(layers) = &args.hidden_states {
        // One more than there are layers: the embeddings are counted, too.
        request = request.hidden_states(layers.of(model.decoder().layers().len() + 1));
    }
    match &args.attentions {
        Some(layers @ Layers::Only(_)) => {
            request = request.attentions(layers.of(model.decoder().layers().len()));
        }
        Some(Layers::All) => {
            let specs = model.decoder().layers();
            let has_attention = |it: &usize| specs[*it].has_attention();
            request = request.attentions((0..specs.len()).filter(has_attention));
        }
        None => {}
    }
    if let Some(cache) = cache {
        request = request.cache(cache);
    }
    if let Some(hook) = args.steering.hook(model)? {
        request = request.hook(hook);
    }
    Ok(request)
}

/// What a request has with and without steering: prompts, settings, seed and soft prompt.
fn plain<'a>(
    args: &GenerateArgs,
    settings: &Settings,
    prompts: Vec<Prompt>,
    seed: Seed,
) -> Result<Request<'a>> {
    let request = Request::batch(prompts)
        .overrides(settings.flags.clone())
        .config(settings.file.clone())
        .seed(seed)
        .negative_prompts(args.negative_prompt.iter().map(String::as_str));
    Ok(match args.soft_prompt.load()? {
        Some(soft_prompt) => request.soft_prompt(&soft_prompt),
        None => request,
    })
}

/// The request with the draft model, where there is one.
pub(crate) fn with_assistant<'a>(
    args: &GenerateArgs,
    request: Request<'a>,
    assistant: Option<&'a Model>,
) -> AssistedRequest<'a> {
    let request = AssistedRequest::from(request);
    match assistant {
        Some(model) => request.assistant(Assistant::new(model).config(args.assistant.config())),
        None => request,
    }
}

/// The tokens of the answers without steering, to which steered ones are compared.
fn unsteered(
    args: &GenerateArgs,
    settings: &Settings,
    model: &Model,
    prompts: Vec<Prompt>,
    assistant: Option<&Model>,
    seed: Seed,
) -> Result<Vec<Vec<u32>>> {
    let request = with_assistant(args, plain(args, settings, prompts, seed)?, assistant);
    Ok(model.generate(request)?.sequences.into_iter().map(|it| it.tokens).collect())
}

/// What the guardrails say of a sequence; nothing of a sound one that was accepted at once.
pub(crate) fn verdict(sequence: &Sequence) -> Option<String> {
    let verdict = sequence.verdict.as_ref()?;
    let suspicions = verdict.suspicions.iter().map(ToString::to_string).collect::<Vec<_>>();
    match (&verdict.resampled, &suspicions[..]) {
        (None, []) => None,
        (None, _) => Some(format!("the text looks degenerate: {}", suspicions.join(", "))),
        (Some(reason), []) => Some(format!("the text was drawn once more; the first was {reason}")),
        (Some(reason), _) => Some(format!(
            "the text was drawn once more (the first: {reason}), and still looks degenerate: {}",
            suspicions.join(", ")
        )),
    }
}

/// Shows on stderr what the model is given.
fn show_prompts(prompts: &[Prompt], texts: &[Option<String>], model: &Model) -> Result<()> {
    for (index, (prompt, text)) in prompts.iter().zip(texts).enumerate() {
        let ids = prompt.ids(model)?;
        terminal::remark(format_args!("[prompt {index}, {} tokens]", ids.len()));
        match text {
            Some(text) => terminal::remark(text),
            None => terminal::remark(joined(&ids)),
        }
    }
    Ok(())
}

/// What to say of texts that a limit has cut inside a structure, which they then may not fit.
fn cut_off(generation: &Generation, config: &GenerationConfig) -> Option<String> {
    let structure = ["json_schema", "regex", "grammar"];
    let structure = structure.into_iter().find(|it| config.get(it).is_some())?;
    let limit = |it: FinishReason| match it {
        FinishReason::Length if config.max_new_tokens.is_some() => Some("max_new_tokens"),
        FinishReason::Length => Some("max_length"),
        FinishReason::Time => Some("max_time"),
        _ => None,
    };
    let mut cut = generation.sequences.iter().filter_map(|it| limit(it.finish_reason));
    let field = cut.next()?;
    let what = match (cut.count() + 1, generation.sequences.len()) {
        (_, 1) => "the text was cut off".to_owned(),
        (cut, of) => format!("{cut} of {of} texts were cut off"),
    };
    Some(format!("{what} by `{field}` and may not fit `{structure}`"))
}

/// Prints a single sequence as it is made.
fn show(mut stream: TokenStream<'_>, model: &Model) -> Result<Generation> {
    for (index, piece) in stream.by_ref().enumerate() {
        match piece {
            Ok(it) if model.has_tokenizer() => terminal::piece(&it.text)?,
            Ok(it) if index == 0 => terminal::piece(&it.token.to_string())?,
            Ok(it) => terminal::piece(&format!(",{}", it.token))?,
            Err(e) => {
                if index > 0 {
                    // The error begins a line of its own.
                    terminal::line("")?;
                }
                return Err(e.into());
            }
        }
    }
    terminal::line("")?;
    Ok(stream.finish()?)
}

/// Prints every token of every sequence as it is made, each as a line of JSON.
fn print_pieces(mut stream: TokenStream<'_>) -> Result<Generation> {
    for piece in stream.by_ref() {
        document::print(&PieceLine::new(&piece?))?;
    }
    Ok(stream.finish()?)
}

/// Waits for all sequences.
fn gather(mut stream: TokenStream<'_>) -> Result<Generation> {
    let bar = TokenBar::new(stream.max_tokens());
    for piece in stream.by_ref() {
        piece?;
        bar.advance();
    }
    Ok(stream.finish()?)
}

/// Prints the sequences, each under a heading where there are several; as token ids where there is
/// no tokenizer.
fn print_all(generation: &Generation, model: &Model) -> Result<()> {
    let copies = generation.sequences.len() / generation.prompt_tokens.len();
    for (index, it) in generation.sequences.iter().enumerate() {
        if generation.sequences.len() > 1 {
            let (prompt, sequence) = (it.prompt_index, index % copies);
            terminal::line(format_args!("[prompt {prompt}, sequence {sequence}]"))?;
        }
        if model.has_tokenizer() {
            terminal::line(&it.text)?;
        } else {
            terminal::line(joined(&it.tokens))?;
        }
    }
    Ok(())
}

fn joined(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn summary(generation: &Generation, about: &About) -> String {
    let guessed = match generation.acceptance {
        Some(it) => format!("; {} of {} guesses accepted", it.accepted, it.guessed),
        None => String::new(),
    };
    let cached = match about.is_cached {
        true => format!(", {} of them cached", generation.cached_tokens),
        false => String::new(),
    };
    let seed = about.seed.map_or_else(String::new, |seed| format!("; seed {seed}"));
    format!(
        "{} tokens, {:.0} tokens/s; load {:.2} s, prefill {:.2} s ({} tokens{cached}), decode \
         {:.2} s{guessed}{seed}",
        generation.generated_tokens(),
        tokens_per_second(generation),
        about.loaded.as_secs_f64(),
        generation.prefill.as_secs_f64(),
        generation.prompt_tokens.iter().sum::<usize>(),
        generation.decode.as_secs_f64(),
    )
}
