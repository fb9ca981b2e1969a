//! Helpers that guess ahead: a draft model, or the text itself.

use mlxgk_decoding_strategies::{
    AssistantOptions, CandidateGenerator, DEFAULT_PREFILL_CHUNK, DraftModel, LeftPadded, Prefill,
    PromptLookup, Schedule,
};
use mlxgk_generation_config::{GenerationConfig, Kwargs, Resolved, Sources};
use mlxgk_kv_cache::CacheOptions;
use mlxgk_mlx_models::NoHook;

use crate::{Error, ErrorKind, Model, Result};

/// A draft model: a smaller one with the same vocabulary, which guesses several tokens that the
/// model then checks in one pass. The outcome is the model's own; only the speed differs.
///
/// How many tokens it guesses are fields of the draft model's own configuration, as in HF:
/// `num_assistant_tokens`, `num_assistant_tokens_schedule` and `assistant_confidence_threshold`.
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

    /// Refuses a draft model that means other things by the same ids.
    fn check(&self, model: &Model) -> Result<()> {
        let refuse = |why: String| {
            let what = format!(
                "{} cannot assist {}: {why}; a draft model must have the model's own tokenizer",
                self.model.name(),
                model.name()
            );
            Err(Error::new(ErrorKind::Request, what))
        };
        let (ours, theirs) = (model.decoder().vocab_size(), self.model.decoder().vocab_size());
        if ours != theirs {
            return refuse(format!("its vocabulary has {theirs} tokens, not {ours}"));
        }
        if let (Ok(ours), Ok(theirs)) = (model.tokenizer(), self.model.tokenizer())
            && let Some(id) = ours.first_difference(theirs)
        {
            let name = |it: Option<String>| it.map_or("nothing".to_owned(), |it| format!("{it:?}"));
            let (ours, theirs) = (name(ours.id_to_token(id)), name(theirs.id_to_token(id)));
            return refuse(format!("its token {id} is {theirs}, not {ours}"));
        }
        Ok(())
    }
}

impl<'a> From<&'a Model> for Assistant<'a> {
    fn from(model: &'a Model) -> Self {
        Self::new(model)
    }
}

/// What guesses for a request in assisted mode: prompt lookup where that is asked for, as in HF. A draft
/// model's cache keeps its columns as `cache` says.
pub(crate) fn generator<'a>(
    resolved: &Resolved,
    model: &Model,
    assistant: Option<Assistant<'a>>,
    prompt: &[u32],
    cache: &CacheOptions,
) -> Result<Box<dyn CandidateGenerator + 'a>> {
    let config = &resolved.config;
    if let Some(count) = config.prompt_lookup_num_tokens {
        if config.assistant_ensemble_weight.is_some() {
            let what = "`assistant_ensemble_weight` weighs a draft model's scores, which prompt \
                        lookup has none of";
            return Err(Error::new(ErrorKind::Request, what));
        }
        let ngram = config.max_matching_ngram_size.filter(|it| *it > 0).unwrap_or(2);
        return Ok(Box::new(PromptLookup::new(count, ngram)?));
    }
    let Some(assistant) = assistant else {
        let what = "assisted generation needs a draft model or `prompt_lookup_num_tokens`";
        return Err(Error::new(ErrorKind::Request, what));
    };
    assistant.check(model)?;
    let options = assistant.options()?;
    let padded = LeftPadded::new(&[prompt.to_vec()], 0)?;
    let chunk = config.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK);
    let prefill = Prefill::with_options(assistant.model.decoder(), &padded, NoHook, cache)?;
    Ok(Box::new(DraftModel::new(prefill.chunk(chunk).finish()?, prompt, options)))
}
