//! Helpers that guess ahead: a draft model, or the text itself.

use mlxgk_decoding_strategies::{
    AssistantOptions, CandidateGenerator, DEFAULT_PREFILL_CHUNK, DraftModel, LeftPadded, Prefill,
    PromptLookup, Schedule,
};
use mlxgk_generation_config::{GenerationConfig, Kwargs, Resolved, Sources};
use mlxgk_kv_cache::CacheOptions;
use mlxgk_mlx_models::NoHook;

use crate::{
    Error, ErrorKind, Model, Result,
    translation::{Translated, Translation},
};

/// A draft model: a smaller one, which guesses several tokens that the model then checks in one pass. The
/// outcome is the model's own; only the speed differs. Where its tokenizer is another (HF
/// `assistant_tokenizer`), it guesses among the tokens that both have.
///
/// How many tokens it guesses are fields of the draft model's own configuration, as in HF:
/// `num_assistant_tokens`, `num_assistant_tokens_schedule` and `assistant_confidence_threshold`.
///
/// ```
/// use mlx_genkit::{Assistant, ComputeDtype, GenerationConfig, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// // The model drafts for itself, two tokens at a time.
/// let settings = GenerationConfig {
///     num_assistant_tokens: Some(2),
///     num_assistant_tokens_schedule: Some("constant".into()),
///     ..Default::default()
/// };
/// let request = Request::new("Once upon a time");
/// let helped = model.generate(request.assistant(Assistant::new(&model).config(settings)))?;
/// let acceptance = helped.acceptance.unwrap();
/// assert!(acceptance.guessed <= 2 * acceptance.turns);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Assistant<'a> {
    model: &'a Model,
    config: GenerationConfig,
}

impl<'a> Assistant<'a> {
    /// A draft model with its own settings.
    pub fn new(model: &'a Model) -> Self {
        Self { model, config: GenerationConfig::default() }
    }

    /// Fields that win over the draft model's own configuration: what HF's users set on
    /// `assistant_model.generation_config`.
    #[must_use]
    pub fn config(self, config: GenerationConfig) -> Self {
        Self { config, ..self }
    }

    fn options(&self) -> Result<AssistantOptions> {
        let (kwargs, model) = (Kwargs::default(), self.model.generation_config());
        let config = Sources { kwargs: &kwargs, passed: &self.config, model }.merge()?.config;
        let schedule = match config.num_assistant_tokens_schedule.as_deref() {
            None | Some("constant") => Schedule::Constant,
            Some("heuristic" | "heuristic_transient") => Schedule::Heuristic,
            Some(other) => {
                let what = format!(
                    "`num_assistant_tokens_schedule` must be constant, heuristic or \
                     heuristic_transient, but is {other:?}"
                );
                return Err(Error::new(ErrorKind::Request, what));
            }
        };
        let default = AssistantOptions::default();
        Ok(AssistantOptions {
            num_tokens: config.num_assistant_tokens.unwrap_or(default.num_tokens),
            schedule,
            confidence_threshold: config
                .assistant_confidence_threshold
                .unwrap_or(default.confidence_threshold),
        })
    }

    /// What the draft model calls the model's tokens; `None` where both call them the same.
    fn translation(&self, model: &'a Model) -> Result<Option<Translation<'a>>> {
        let (ours, theirs) = (model.decoder().vocab_size(), self.model.decoder().vocab_size());
        match (model.tokenizer(), self.model.tokenizer()) {
            (Ok(a), Ok(b)) if ours == theirs && a.first_difference(b).is_none() => Ok(None),
            (Ok(_), Ok(_)) => Translation::new(model, self.model).map(Some),
            _ if ours == theirs => Ok(None),
            _ => {
                let what = format!(
                    "{} cannot assist {}: its vocabulary has {theirs} tokens, not {ours}, and without a \
                     tokenizer.json beside both nothing says which are the same",
                    self.model.name(),
                    model.name()
                );
                Err(Error::new(ErrorKind::Request, what))
            }
        }
    }
}

impl<'a> From<&'a Model> for Assistant<'a> {
    fn from(model: &'a Model) -> Self {
        Self::new(model)
    }
}

/// Whether the model's own heads guess: as in HF, where no other helper but a draft model is asked for.
pub(crate) fn guesses_by_heads(config: &GenerationConfig) -> bool {
    config.use_mtp == Some(true)
        && config.assistant_early_exit.is_none()
        && config.prompt_lookup_num_tokens.is_none()
}

/// What else guesses for a request in assisted mode: the model's own first layers or prompt lookup where those are
/// asked for, as in HF. A draft's cache keeps its columns as `cache` says.
pub(crate) fn generator<'a>(
    resolved: &Resolved,
    model: &'a Model,
    assistant: Option<Assistant<'a>>,
    prompt: &[u32],
    cache: &CacheOptions,
) -> Result<Box<dyn CandidateGenerator + 'a>> {
    let config = &resolved.config;
    let mut translation = None;
    let (assistant, cache) = if let Some(layers) = config.assistant_early_exit {
        check_early_exit(layers, model, config)?;
        let own = assistant.map(|it| it.config).unwrap_or_default();
        (Assistant { model, config: own }, cache.clone().early_exit(layers))
    } else if let Some(count) = config.prompt_lookup_num_tokens {
        if config.assistant_ensemble_weight.is_some() {
            let what = "`assistant_ensemble_weight` weighs a draft model's scores, which prompt \
                        lookup has none of";
            return Err(Error::new(ErrorKind::Request, what));
        }
        let ngram = config.max_matching_ngram_size.filter(|it| *it > 0).unwrap_or(2);
        return Ok(Box::new(PromptLookup::new(count, ngram)?));
    } else if let Some(assistant) = assistant {
        translation = assistant.translation(model)?;
        (assistant, cache.clone())
    } else {
        let what = "assisted generation needs a draft model, `prompt_lookup_num_tokens`, `use_mtp` or \
                    `assistant_early_exit`";
        return Err(Error::new(ErrorKind::Request, what));
    };
    let mut options = assistant.options()?;
    // The Python original says in the request's config how many tokens are drafted.
    let drafted =
        config.num_assistant_tokens.filter(|_| config.unknown.contains_key("num_draft_tokens"));
    if let (None, Some(count)) = (assistant.config.num_assistant_tokens, drafted) {
        options.num_tokens = count;
    }
    let chunk = config.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK);
    let session = |prompt: &[u32]| {
        let prompt = LeftPadded::new(&[prompt.to_vec()], 0)?;
        let decoder = assistant.model.decoder();
        Prefill::with_options(decoder, &prompt, NoHook, &cache)?.chunk(chunk).finish()
    };
    Ok(match translation {
        None => Box::new(DraftModel::new(session(prompt)?, prompt, options)),
        Some(translation) => {
            let session = session(&translation.prompt(prompt)?)?;
            Box::new(DraftModel::new(Translated::new(session, translation), prompt, options))
        }
    })
}

/// Refuses an exit behind layers that the model has not.
fn check_early_exit(layers: usize, model: &Model, config: &GenerationConfig) -> Result<()> {
    let refuse = |what| Err(Error::of_field("assistant_early_exit", what));
    let all = model.decoder().layers().len();
    if layers == 0 || layers > all {
        return refuse(format!(
            "`assistant_early_exit` is {layers}, but must be between 1 and the model's {all} layers"
        ));
    }
    if config.guidance_scale.is_some_and(|it| it != 1.0) {
        let what = "`assistant_early_exit` is not available together with `guidance_scale`";
        return refuse(what.to_owned());
    }
    Ok(())
}
