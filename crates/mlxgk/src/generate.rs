//! `mlxgk generate`.

use std::{fs, path::Path, time::Duration};

use mlx_genkit::{
    Assistant, Generation, GenerationConfig, HiddenStates, Model, Prompt, Request, Seed,
    TokenStream,
    decoding_strategies::TokenLogprobs,
    generation_config::{EarlyStopping, Kwargs, OneOrMany, Sources},
    stream,
};
use serde_json::{Map, Value, json};

use crate::{
    args::{ConfigArgs, Format, GenerateArgs, GrammarArgs, Layers, RngArg},
    failure::{Failure, Result},
    load,
    progress::{Spinner, TokenBar},
    prompts, terminal,
};

/// New tokens where no length is set anywhere. The library keeps HF's 20, too few to read.
const DEFAULT_NEW_TOKENS: usize = 256;

pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let file = config_file(&args.config)?;
    let given = flags(&args.config, &args.grammar)?;
    let prompts = prompts::read(&args.prompt, &args.chat)?;
    let (model, loaded) = load::load(&args.model)?;
    let prompts = prompts::with_chat(prompts, &args.chat, &model)?;
    let flags = with_default_length(given, &file, &model)?;
    let sources = Sources { kwargs: &flags, passed: &file, model: model.generation_config() };
    let merged = sources.merge().map_err(Failure::usage)?.config;
    let hidden = args.hidden_states.is_some() || merged.output_hidden_states == Some(true);
    if hidden && args.format == Format::Text {
        return Err(Failure::usage("hidden states are put into the JSON: add `--format json`"));
    }
    let templated = prompts.iter().any(|it| matches!(it, Prompt::Messages(_)));
    if merged.token_healing == Some(true) && templated {
        let what = "`token_healing` goes on with the last word of a text, which the chat template has \
                    closed: add `--no-auto-chat`";
        return Err(Failure::usage(what));
    }
    let assistant = match &args.assistant.assistant {
        Some(folder) => Some(load::load_beside(folder, &args.model)?),
        None => None,
    };
    let mut request = Request::batch(prompts)
        .overrides(flags)
        .config(file)
        .seed(seed(args))
        .trim_stop(args.trim_stop)
        .negative_prompts(args.negative_prompt.iter().map(|it| it.as_str().into()));
    if let Some(top) = args.logprobs {
        request = request.logprobs(top);
    }
    match &args.hidden_states {
        Some(Layers::Only(layers)) => request = request.hidden_states(layers.iter().copied()),
        Some(Layers::All) => request = request.hidden_states(0..=model.decoder().layers().len()),
        None => {}
    }
    if let Some(assistant) = &assistant {
        let own = GenerationConfig {
            num_assistant_tokens: args.assistant.num_assistant_tokens,
            assistant_confidence_threshold: args.assistant.assistant_confidence_threshold,
            ..GenerationConfig::default()
        };
        request = request.assistant(Assistant::new(assistant).config(own));
    }
    let mut steering = args.steering.hook(&model)?;
    if let Some(hook) = &mut steering {
        request = request.hook(hook);
    }

    let live = args.format == Format::Text;
    let (generation, shown) = if request.mode(&model)?.streams() {
        serve(request, &model, live)?
    } else {
        (search(request, &model)?, false)
    };
    match args.format {
        Format::Json => terminal::line(json(&generation, loaded))?,
        Format::Text if shown => {}
        Format::Text => print_all(&generation, &model)?,
    }
    terminal::note(&summary(&generation, loaded));
    Ok(())
}

/// Serves the request token by token. The flag says whether the text was printed on the way: a
/// single sequence is, where it is to be shown `live`.
fn serve(request: Request<'_>, model: &Model, live: bool) -> Result<(Generation, bool)> {
    let spinner = Spinner::new("reading the prompt");
    let mut stream = stream(model, request)?;
    stream.prefill()?;
    drop(spinner);
    for warning in stream.warnings() {
        terminal::warning(&warning.to_string());
    }
    let live = live && stream.sequences() == 1;
    Ok((if live { show(stream, model)? } else { gather(stream)? }, live))
}

/// Serves a request whose sequences are known at the end only.
fn search(request: Request<'_>, model: &Model) -> Result<Generation> {
    let spinner = Spinner::new("searching");
    let generation = mlx_genkit::generate(model, request)?;
    drop(spinner);
    for warning in &generation.warnings {
        terminal::warning(&warning.to_string());
    }
    Ok(generation)
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

/// Waits for all sequences.
fn gather(mut stream: TokenStream<'_>) -> Result<Generation> {
    let bar = TokenBar::new(stream.most_tokens());
    for piece in stream.by_ref() {
        piece?;
        bar.advance();
    }
    Ok(stream.finish()?)
}

fn seed(args: &GenerateArgs) -> Seed {
    let seed = args.seed.unwrap_or_else(|| match Seed::random() {
        Seed::Torch(seed) | Seed::Fast(seed) => seed,
    });
    match args.rng {
        RngArg::Torch => Seed::Torch(seed),
        RngArg::Fast => Seed::Fast(seed),
    }
}

/// The flags as HF's keyword arguments.
pub(crate) fn flags(args: &ConfigArgs, grammar: &GrammarArgs) -> Result<Kwargs> {
    let named = named(args, grammar)?;
    let mut set = Map::new();
    for (field, value) in &args.set {
        if named.get(field).is_some() || set.insert(field.clone(), value.clone()).is_some() {
            return Err(Failure::usage(format!("`{field}` is given twice")));
        }
    }
    // The others do not pass through JSON, in which a NaN would vanish instead of being refused.
    Ok(Kwargs::from_json(&Value::Object(set)).map_err(Failure::usage)?.or(named))
}

/// The fields that have a flag of their own.
fn named(args: &ConfigArgs, grammar: &GrammarArgs) -> Result<GenerationConfig> {
    let ids = |ids: &Option<Vec<u32>>| {
        ids.as_ref().map(|ids| ids.iter().map(|&id| id.into()).collect::<Vec<_>>())
    };
    Ok(GenerationConfig {
        max_new_tokens: args.max_tokens,
        min_new_tokens: args.min_new_tokens,
        do_sample: args.temp.map(|it| it > 0.0),
        temperature: args.temp.filter(|&it| it != 0.0),
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        top_h: args.top_h,
        typical_p: args.typical_p,
        epsilon_cutoff: args.epsilon_cutoff,
        eta_cutoff: args.eta_cutoff,
        repetition_penalty: args.repetition_penalty,
        no_repeat_ngram_size: args.no_repeat_ngram_size,
        suppress_tokens: ids(&args.suppress_tokens),
        begin_suppress_tokens: ids(&args.begin_suppress_tokens),
        num_return_sequences: args.num_return_sequences,
        num_beams: args.num_beams,
        length_penalty: args.length_penalty,
        early_stopping: args.early_stopping.then_some(EarlyStopping::WhenFinished),
        max_time: args.max_time,
        guidance_scale: args.guidance_scale,
        prompt_lookup_num_tokens: args.prompt_lookup,
        stop_strings: args.stop.clone().map(OneOrMany::Many),
        frequency_penalty: args.frequency_penalty,
        presence_penalty: args.presence_penalty,
        dry_multiplier: args.dry_multiplier,
        xtc_probability: args.xtc_probability,
        xtc_threshold: args.xtc_threshold,
        top_n_sigma: args.top_n_sigma,
        mirostat: args.mirostat,
        json_schema: grammar.json_schema.as_deref().map(schema).transpose()?,
        regex: grammar.regex.clone(),
        grammar: grammar.grammar.as_deref().map(text).transpose()?,
        ..GenerationConfig::default()
    })
}

fn schema(path: &Path) -> Result<Value> {
    let wrong = |it: serde_json::Error| {
        Failure::usage(format!("{} is not valid JSON: {it}", path.display()))
    };
    match serde_json::from_str(&text(path)?).map_err(wrong)? {
        // In a config, null would mean that no schema is asked for.
        Value::Null => {
            let what = "holds null, but a JSON schema must be an object";
            Err(Failure::usage(format!("{} {what}", path.display())))
        }
        schema => Ok(schema),
    }
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .map_err(|it| Failure::usage(format!("{} cannot be read: {it}", path.display())))
}

pub(crate) fn config_file(args: &ConfigArgs) -> Result<GenerationConfig> {
    match &args.generation_config {
        None => Ok(GenerationConfig::default()),
        Some(path) => GenerationConfig::from_file(path).map_err(Failure::usage),
    }
}

pub(crate) fn with_default_length(
    flags: Kwargs,
    file: &GenerationConfig,
    model: &Model,
) -> Result<Kwargs> {
    let sources = Sources { kwargs: &flags, passed: file, model: model.generation_config() };
    let merged = sources.merge().map_err(Failure::usage)?;
    if merged.config.max_new_tokens.is_some() || !merged.has_default_max_length {
        return Ok(flags);
    }
    Ok(flags
        .or(GenerationConfig { max_new_tokens: Some(DEFAULT_NEW_TOKENS), ..Default::default() }))
}

fn json(generation: &Generation, loaded: Duration) -> Value {
    let sequences: Vec<Value> = generation
        .sequences
        .iter()
        .map(|it| {
            let mut sequence = json!({
                "prompt_index": it.prompt_index,
                "tokens": it.tokens,
                "text": it.text,
                "finish_reason": it.finish_reason.as_str(),
                "score": it.score,
            });
            if !it.kept.logprobs.is_empty() {
                let entry = |it: &TokenLogprobs| {
                    json!({"token": it.token, "logprob": it.logprob, "top": it.top})
                };
                sequence["logprobs"] = it.kept.logprobs.iter().map(entry).collect();
            }
            if let Ok(Some(scores)) = it.transition_scores(false) {
                // JSON has no infinity: null is the score of a token that was banned and yet stood.
                sequence["transition_scores"] = json!(scores);
            }
            if let Some(beams) = &it.beam_indices {
                sequence["beam_indices"] = json!(beams);
            }
            if let Some(hidden) = &it.hidden_states {
                sequence["hidden_states"] = hidden_json(hidden);
            }
            sequence
        })
        .collect();
    let mut document = json!({
        "sequences": sequences,
        "prompt_tokens": generation.prompt_tokens,
        "generated_tokens": generation.generated_tokens(),
        "seconds": {
            "load": loaded.as_secs_f64(),
            "prefill": generation.prefill.as_secs_f64(),
            "decode": generation.decode.as_secs_f64(),
        },
        "tokens_per_second": tokens_per_second(generation),
    });
    if !generation.healed_prompts.is_empty() {
        document["healed_prompts"] = json!(generation.healed_prompts);
    }
    if let Some(acceptance) = generation.acceptance {
        document["assistant"] = json!({
            "guessed": acceptance.guessed,
            "accepted": acceptance.accepted,
            "forced": acceptance.forced,
            "turns": acceptance.turns,
        });
    }
    document
}

/// By token, layer and position: the layers' numbers beside them.
fn hidden_json(hidden: &HiddenStates) -> Value {
    let positions = |layer: &Vec<f32>| -> Value { layer.chunks(hidden.hidden_size).collect() };
    let layers = |step: &Vec<Vec<f32>>| -> Value { step.iter().map(positions).collect() };
    let steps: Value = hidden.steps.iter().map(layers).collect();
    json!({"layers": hidden.layers, "steps": steps})
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
            let ids: Vec<String> = it.tokens.iter().map(u32::to_string).collect();
            terminal::line(ids.join(","))?;
        }
    }
    Ok(())
}

fn summary(generation: &Generation, loaded: Duration) -> String {
    let guessed = match generation.acceptance {
        Some(it) => format!("; {} of {} guesses stood", it.accepted, it.guessed),
        None => String::new(),
    };
    format!(
        "{} tokens, {:.0} tokens/s; load {:.2} s, prefill {:.2} s ({} tokens), decode {:.2} s{guessed}",
        generation.generated_tokens(),
        tokens_per_second(generation),
        loaded.as_secs_f64(),
        generation.prefill.as_secs_f64(),
        generation.prompt_tokens.iter().sum::<usize>(),
        generation.decode.as_secs_f64(),
    )
}

fn tokens_per_second(generation: &Generation) -> f64 {
    let seconds = generation.decode.as_secs_f64();
    if seconds > 0.0 { generation.generated_tokens() as f64 / seconds } else { 0.0 }
}
