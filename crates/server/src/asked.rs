//! From a request's fields to what the engine is asked: everything that needs no arrays is read, checked
//! and encoded here, on the threads of the handlers.

use std::sync::Arc;

use mlx_genkit::{
    GenerationConfig, Seed,
    generation_config::{GenerationMode, Kwargs, Merged, Resolved, Sources},
    sampling::CompiledGrammar,
    steering::Steering,
};

use crate::{
    app::App,
    fields::{Fields, Generating, wrong},
    refusal::Refusal,
    steering::{self, Steered},
    tools::Calls,
};

/// What the engine is asked.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) kwargs: Kwargs,
    pub(crate) seed: Seed,
    /// How many of the likeliest tokens are recorded beside each, where any are.
    pub(crate) logprobs: Option<usize>,
    pub(crate) steering: Option<Arc<Steering>>,
    /// The grammar, compiled; held until the engine has taken it.
    pub(crate) grammar: Option<CompiledGrammar>,
    /// Special tokens that are part of the texts.
    pub(crate) shown: Vec<u32>,
    /// How many sequences run.
    pub(crate) rows: usize,
}

/// How the answer is to be given.
#[derive(Debug)]
pub(crate) struct Answering {
    /// As it is made?
    pub(crate) stream: bool,
    /// Whether a last chunk has the number of tokens.
    pub(crate) include_usage: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) steered: Option<Steered>,
    /// The seed, where anything is drawn.
    pub(crate) seed: Option<u64>,
    /// HF's fields and how the request spells them.
    pub(crate) spelled: Vec<(&'static str, &'static str)>,
    /// What reads the calls of tools, where there are any to call.
    pub(crate) calls: Option<Calls>,
    /// Sentences about what was asked.
    pub(crate) warnings: Vec<String>,
}

/// Refuses a model that is not the server's.
pub(crate) fn check_model(fields: &mut Fields, app: &App) -> Result<(), Refusal> {
    match fields.text("model")? {
        Some(name) if name != app.about.id => Err(Refusal::unknown_model(&name, &app.about.id)),
        _ => Ok(()),
    }
}

/// Reads what chats and completions have in common. `logprobs` is how many of the likeliest tokens are asked
/// for.
pub(crate) fn read(
    mut fields: Fields,
    prompts: Vec<Vec<u32>>,
    logprobs: Option<usize>,
    app: &App,
) -> Result<(Asked, Answering), Refusal> {
    let stream = fields.switch("stream")?;
    let include_usage = stream_options(&mut fields, stream)?;
    let return_token_ids = fields.switch("return_token_ids")?;
    let (seed, number) = seed(&mut fields)?;
    let steered = fields.take("steering").map(|it| steering::read(it, app)).transpose()?.flatten();
    let generating = fields.generating()?;
    let (kwargs, resolved) = resolve(&generating, &prompts, app)
        .map_err(|refusal| refusal.spelled(&generating.spelled))?;
    if stream && !resolved.mode.streams() {
        let mode = resolved.mode.as_str();
        let what = format!(
            "`stream` is not available with {mode}, whose tokens are known at the end only"
        );
        return Err(Refusal::field("stream", what));
    }
    let copies = match resolved.mode {
        GenerationMode::ContrastiveSearch => {
            resolved.config.top_k.unwrap_or(1).clamp(1, app.about.vocab)
        }
        mode if mode.streams() => resolved.num_return_sequences,
        _ => resolved.num_beams,
    };
    let rows = prompts.len().saturating_mul(copies);
    if rows > app.max_rows {
        let what = format!(
            "the request makes {rows} sequences at once (prompts × `n`, `num_beams`, or `top_k` of contrastive search), but this server runs \
             {} at most",
            app.max_rows
        );
        return Err(Refusal::field("n", what));
    }
    let grammar = app.about.compile(&resolved);
    let grammar = grammar.map_err(|refusal| refusal.spelled(&generating.spelled))?;
    let steering = steered.as_ref().map(|it| Arc::clone(&it.steering));
    let answering = Answering {
        stream,
        include_usage,
        return_token_ids,
        steered,
        seed: resolved.do_sample.then_some(number),
        spelled: generating.spelled,
        calls: None,
        warnings: Vec::new(),
    };
    let shown = Vec::new();
    Ok((Asked { prompts, kwargs, seed, logprobs, steering, grammar, shown, rows }, answering))
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, Refusal> {
    const NAME: &str = "stream_options";
    let Some(options) = fields.object(NAME)? else { return Ok(false) };
    if !stream {
        return Err(Refusal::field(NAME, format!("`{NAME}` needs `stream`: true")));
    }
    let mut options = Fields::of(options.into())?;
    let include_usage = options.switch("include_usage")?;
    if options.switch("include_obfuscation")? {
        let what = format!("`{NAME}.include_obfuscation` is not supported");
        return Err(Refusal::field(NAME, what));
    }
    options.end()?;
    Ok(include_usage)
}

/// The seed, and the number that gives it again.
fn seed(fields: &mut Fields) -> Result<(Seed, u64), Refusal> {
    // Without one, a random one that every JSON reader keeps to the last digit.
    let number = match (fields.count("seed")?, Seed::random()) {
        (Some(number), _) | (None, Seed::Fast(number) | Seed::Torch(number)) => number,
    };
    Ok((Seed::Fast(number), number))
}

/// The fields over the model's own, with a length that the context holds.
fn resolve(
    generating: &Generating,
    prompts: &[Vec<u32>],
    app: &App,
) -> Result<(Kwargs, Resolved), Refusal> {
    let (context, width) = (app.about.context, check_prompts(prompts, app)?);
    let room = context.saturating_sub(width);
    if room == 0 {
        return Err(Refusal::context(width, None, context));
    }
    let mut kwargs = generating.kwargs.clone();
    let merged = merge(&kwargs, app)?;
    let of = |tokens| GenerationConfig { max_new_tokens: Some(tokens), ..Default::default() };
    if merged.config.max_new_tokens.is_none() && merged.has_default_max_length {
        kwargs = kwargs.or(of(app.max_tokens.min(room)));
    }
    let mut resolved = merge(&kwargs, app)?.resolve(width, Some(context))?;
    let new = resolved.lengths.max_new_tokens();
    if new > room {
        match generating.length {
            Some(field) => return Err(Refusal::context(width, Some((new, field)), context)),
            // The model's own bound.
            None => {
                kwargs = kwargs.or(of(room));
                resolved = merge(&kwargs, app)?.resolve(width, Some(context))?;
            }
        }
    }
    Ok((kwargs, resolved))
}

/// The fields over the model's own and HF's defaults.
fn merge(kwargs: &Kwargs, app: &App) -> Result<Merged, Refusal> {
    let (passed, model) = (GenerationConfig::default(), &app.about.generation_config);
    Ok(Sources { kwargs, passed: &passed, model }.merge()?)
}

/// Refuses prompts without tokens, and tokens outside the vocabulary. Returns the longest one's length.
fn check_prompts(prompts: &[Vec<u32>], app: &App) -> Result<usize, Refusal> {
    let vocab = app.about.vocab;
    for prompt in prompts {
        if prompt.is_empty() {
            return Err(Refusal::request("the prompt is empty; a model needs at least one token"));
        }
        if let Some(id) = prompt.iter().find(|it| **it as usize >= vocab) {
            let what = format!("token id {id} is outside the vocabulary of {vocab}");
            return Err(Refusal::field("prompt", what));
        }
    }
    match prompts.iter().map(Vec::len).max() {
        Some(width) => Ok(width),
        None => Err(Refusal::field("prompt", "there is no prompt")),
    }
}

/// How many of the likeliest tokens a request asks for.
pub(crate) fn top(fields: &mut Fields, name: &str) -> Result<Option<usize>, Refusal> {
    const MOST: u64 = 20;
    match fields.count(name)? {
        Some(count) if count > MOST => Err(wrong(name, "at most 20", &count.into())),
        count => Ok(count.map(|it| it as usize)),
    }
}
