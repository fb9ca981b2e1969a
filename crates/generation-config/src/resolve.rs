//! From merged fields and a prompt to what a strategy needs, with no `Option` where none is meant.

use crate::{
    CacheChoice, Error, ErrorKind, GenerationConfig, GenerationMode, Kwargs, Merged, Result,
    Sources, TokenId, Warning, WarningKind,
};

/// The lengths that hold for one prompt, in tokens, the prompt included.
///
/// ```
/// use mlxgk_generation_config::GenerationConfig;
///
/// let config = GenerationConfig { max_new_tokens: Some(8), ..Default::default() };
/// let lengths = config.resolve(&GenerationConfig::default(), 5, None)?.lengths;
/// assert_eq!((lengths.prompt_len, lengths.max_length), (5, 13));
/// assert_eq!(lengths.max_new_tokens(), 8);
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths {
    /// Length of the prompt, its left padding included.
    pub prompt_len: usize,
    /// Length at which a sequence ends; above `prompt_len`.
    pub max_length: usize,
    /// Length below which no sequence ends.
    pub min_length: usize,
}

/// The token ids that the loop itself looks at.
///
/// ```
/// use mlxgk_generation_config::GenerationConfig;
///
/// let model = GenerationConfig { eos_token_id: Some(vec![2, 7].into()), ..Default::default() };
/// let ids = GenerationConfig::default().resolve(&model, 5, None)?.special_tokens;
/// assert_eq!((ids.eos, ids.pad, ids.bos), (vec![2, 7], Some(2), None));
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// The tokens that end a sequence; may be empty.
    pub eos: Vec<u32>,
    /// What fills up the rows that end early.
    pub pad: Option<u32>,
    /// The token that begins a text.
    pub bos: Option<u32>,
}

/// A configuration ready to run: merged, validated, supported, its lengths and ids settled.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, GenerationMode};
///
/// let config = GenerationConfig { num_beams: Some(4), ..Default::default() };
/// let resolved = config.resolve(&GenerationConfig::default(), 5, None)?;
/// assert_eq!((resolved.mode, resolved.num_beams), (GenerationMode::BeamSearch, 4));
/// assert_eq!(resolved.num_return_sequences, 1); // HF's default
/// assert_eq!(resolved.config.length_penalty, Some(1.0)); // HF's, too
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The merged fields, which the processors are made from.
    pub config: GenerationConfig,
    /// The strategy.
    pub mode: GenerationMode,
    /// The lengths that hold for the prompt.
    pub lengths: Lengths,
    /// `eos_token_id`, `pad_token_id` and `bos_token_id`.
    pub special_tokens: SpecialTokens,
    /// Whether tokens are drawn.
    pub do_sample: bool,
    /// How many beams run; 1 is not beam search.
    pub num_beams: usize,
    /// How many sequences each prompt gets.
    pub num_return_sequences: usize,
    /// Tokens of the prompt that go through the model at a time; `None`, all of them.
    pub prefill_chunk_size: Option<usize>,
    /// What is asked of the cache.
    pub cache: CacheChoice,
    /// Warnings about the fields, the lengths and the ids.
    pub warnings: Vec<Warning>,
}

impl GenerationConfig {
    /// Merges the fields over those of a model's own `generation_config.json` and settles them for
    /// a prompt of `prompt_len` tokens: [`Sources::merge`] without arguments of a call, and
    /// [`Merged::resolve`].
    ///
    /// # Errors
    /// Those of the two.
    ///
    /// ```
    /// use mlxgk_generation_config::GenerationConfig;
    ///
    /// let own = GenerationConfig { top_p: Some(0.9), ..GenerationConfig::default() };
    /// let model = GenerationConfig { do_sample: Some(true), ..GenerationConfig::default() };
    /// let resolved = own.resolve(&model, 5, None)?;
    /// assert!(resolved.do_sample);
    /// assert_eq!(resolved.lengths.max_length, 25);
    /// # Ok::<(), mlxgk_generation_config::Error>(())
    /// ```
    pub fn resolve(
        &self,
        model: &Self,
        prompt_len: usize,
        max_position_embeddings: Option<usize>,
    ) -> Result<Resolved> {
        let sources = Sources { kwargs: &Kwargs::default(), passed: self, model };
        sources.merge()?.resolve(prompt_len, max_position_embeddings)
    }
}

impl Merged {
    /// Settles the fields for a prompt of `prompt_len` tokens, padding included.
    ///
    /// `max_position_embeddings` is the model's; like in HF it caps the default length only.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for what is not implemented yet, [`ErrorKind::Length`] where the
    /// prompt leaves no room, [`ErrorKind::Value`] for a token id beyond 32 bits, a
    /// `prefill_chunk_size` of 0 or a cache that cannot be.
    pub fn resolve(
        &self,
        prompt_len: usize,
        max_position_embeddings: Option<usize>,
    ) -> Result<Resolved> {
        let config = &self.config;
        config.refuse_unsupported()?;
        if config.prefill_chunk_size == Some(0) {
            let message = "`prefill_chunk_size` must be at least 1, but is 0";
            return Err(Error::of(ErrorKind::Value, "prefill_chunk_size", message));
        }
        self.check_beams()?;
        let (lengths, about_lengths) = self.lengths(prompt_len, max_position_embeddings)?;
        let (special_tokens, about_tokens) = self.special_tokens()?;
        let (cache, about_cache) = config.cache_choice(lengths.max_length)?;
        Ok(Resolved {
            mode: config.generation_mode(false),
            lengths,
            special_tokens,
            do_sample: config.do_sample == Some(true),
            num_beams: config.num_beams.unwrap_or(1),
            num_return_sequences: config.num_return_sequences.unwrap_or(1).max(1),
            prefill_chunk_size: config.prefill_chunk_size,
            config: config.clone(),
            cache,
            warnings: [self.warnings.clone(), about_lengths, about_tokens, about_cache].concat(),
        })
    }

    /// What HF refuses where a search with beams begins.
    fn check_beams(&self) -> Result<()> {
        let config = &self.config;
        if config.num_beams == Some(0) {
            let message = "`num_beams` must be at least 1, but is 0";
            return Err(Error::of(ErrorKind::Value, "num_beams", message));
        }
        let low_memory = config.low_memory == Some(true);
        let wrong = match config.generation_mode(false) {
            GenerationMode::BeamSearch | GenerationMode::BeamSample => {
                low_memory.then_some(("low_memory", "beam search has no such mode any more"))
            }
            GenerationMode::GroupBeamSearch => self.wrong_of_groups(),
            GenerationMode::ConstrainedBeamSearch => self.wrong_of_forced_words(),
            _ => None,
        };
        let Some((field, what)) = wrong else { return Ok(()) };
        let value = config.get(field).unwrap_or_default();
        let message = format!("`{field}` is {value}, but {what}");
        Err(Error::of(ErrorKind::Value, field, message))
    }

    /// A field, and what is wrong with it.
    fn wrong_of_groups(&self) -> Option<(&'static str, &'static str)> {
        let config = &self.config;
        let (beams, groups) = (config.num_beams.unwrap_or(1), config.num_beam_groups.unwrap_or(1));
        if !beams.is_multiple_of(groups) {
            return Some(("num_beam_groups", "it must divide `num_beams`"));
        }
        if config.diversity_penalty.is_none_or(|it| it <= 0.0) {
            return Some(("diversity_penalty", "it must be above 0, or all groups are the same"));
        }
        let drawn = config.do_sample == Some(true);
        drawn.then_some(("do_sample", "groups of beams are searched, not drawn"))
    }

    fn wrong_of_forced_words(&self) -> Option<(&'static str, &'static str)> {
        let config = &self.config;
        if config.num_beams.is_none_or(|it| it == 1) {
            let what = "forced words take beams: set `num_beams` to 2 or more";
            return Some(("force_words_ids", what));
        }
        if config.num_beam_groups.is_some_and(|it| it > 1) {
            return Some(("num_beam_groups", "forced words take beams without groups"));
        }
        if config.force_words_ids.as_ref().is_some_and(Vec::is_empty) {
            return Some(("force_words_ids", "it must hold at least one word"));
        }
        let drawn = config.do_sample == Some(true);
        drawn.then_some(("do_sample", "forced words are searched, not drawn"))
    }

    /// The ids that the loop looks at: HF's `_prepare_special_tokens`.
    ///
    /// Without a `pad_token_id`, the first `eos_token_id` pads. A negative id counts as unset,
    /// where HF would pad with it and fail at the next embedding.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for an id beyond 32 bits.
    pub fn special_tokens(&self) -> Result<(SpecialTokens, Vec<Warning>)> {
        let config = &self.config;
        let mut warnings = Vec::new();
        let eos = config.eos_token_id.as_ref().map_or(&[][..], |it| it.as_slice());
        if let Some(id) = eos.iter().find(|it| **it < 0) {
            let message = format!("`eos_token_id` holds {id}, which is not a token id");
            warnings.push(Warning::new(WarningKind::TokenId, "eos_token_id", message));
        }
        let eos = unsigned("eos_token_id", eos)?;
        let pad = unsigned("pad_token_id", config.pad_token_id.as_slice())?;
        let bos = unsigned("bos_token_id", config.bos_token_id.as_slice())?;
        let pad = pad.first().or(eos.first()).copied();
        Ok((SpecialTokens { pad, bos: bos.first().copied(), eos }, warnings))
    }

    /// The lengths for a prompt of `prompt_len` tokens: HF's `_prepare_generated_length` and
    /// `_validate_generated_length`.
    ///
    /// # Errors
    /// [`ErrorKind::Length`] where nothing bounds the length or the prompt reaches the bound.
    pub fn lengths(
        &self,
        prompt_len: usize,
        max_position_embeddings: Option<usize>,
    ) -> Result<(Lengths, Vec<Warning>)> {
        let config = &self.config;
        let mut warnings = Vec::new();
        let mut warn = |field: &str, message: String| {
            warnings.push(Warning::new(WarningKind::Length, field, message));
        };
        let max_length = match (config.max_new_tokens, config.max_length) {
            (Some(new), total) => {
                if let Some(total) = total
                    && !self.has_default_max_length
                {
                    let message = format!(
                        "`max_length` is {total}, but `max_new_tokens`, which is {new}, wins"
                    );
                    warn("max_length", message);
                }
                prompt_len.saturating_add(new)
            }
            (None, Some(new)) if self.has_default_max_length => {
                let total = prompt_len.saturating_add(new);
                let total = max_position_embeddings.map_or(total, |it| it.min(total));
                let message = format!(
                    "no length is set, so that generation ends after the default of {new} new \
                     tokens: set `max_new_tokens`"
                );
                warn("max_length", message);
                total
            }
            (None, Some(total)) => total,
            (None, None) => {
                let message = "`max_length` is given as null and `max_new_tokens` is not set, so \
                               that nothing bounds the length";
                return Err(Error::of(ErrorKind::Length, "max_length", message));
            }
        };
        if prompt_len >= max_length {
            let message = format!(
                "the prompt has {prompt_len} tokens, but `max_length` is {max_length}, prompt \
                 included: raise it or set `max_new_tokens`"
            );
            return Err(Error::of(ErrorKind::Length, "max_length", message));
        }

        let min_length = match (config.min_new_tokens, config.min_length.unwrap_or(0)) {
            (Some(new), total) => {
                if !self.has_default_min_length {
                    let message = format!(
                        "`min_length` is {total}, but `min_new_tokens`, which is {new}, wins"
                    );
                    warn("min_length", message);
                }
                prompt_len.saturating_add(new)
            }
            (None, total) => total,
        };
        if min_length > max_length {
            let field =
                if config.min_new_tokens.is_some() { "min_new_tokens" } else { "min_length" };
            let message = format!(
                "`{field}` asks for sequences of {min_length} tokens, but they end at {max_length}"
            );
            warn(field, message);
        }
        Ok((Lengths { prompt_len, max_length, min_length }, warnings))
    }
}

impl Resolved {
    /// Whether the text has to fit a JSON schema, a regular expression or a grammar.
    pub fn has_grammar(&self) -> bool {
        let config = &self.config;
        config.json_schema.is_some() || config.regex.is_some() || config.grammar.is_some()
    }
}

impl Lengths {
    /// Most new tokens.
    pub fn max_new_tokens(&self) -> usize {
        self.max_length - self.prompt_len
    }
}

/// Ids as models have them; negative ones stand for "none" and are left out.
fn unsigned(field: &str, ids: &[TokenId]) -> Result<Vec<u32>> {
    let ids = ids.iter().filter(|it| **it >= 0);
    ids.map(|&id| {
        u32::try_from(id).map_err(|_| {
            let message = format!("`{field}` holds {id}, which no vocabulary reaches");
            Error::of(ErrorKind::Value, field, message)
        })
    })
    .collect()
}
