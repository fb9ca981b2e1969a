//! From a resolved config to everything that stands between scores and tokens.

use std::time::{Duration, Instant};

use mlxgk_generation_config::{Error as ConfigError, Resolved, Warning};
use mlxgk_logits_processors::{Error, ErrorKind, ProcessorList, Result};
use mlxgk_samplers::Streams;

use crate::{Chooser, Limits, MaxTime, StopConditions, Text, text};

/// What the rows of one request share of the way from scores to tokens.
///
/// Every loop applies them in this order: the processors rewrite a row's scores, the chooser takes a
/// token, the stop conditions say whether the row ends with it.
///
/// ```
/// use mlxgk_generation_config::GenerationConfig;
/// use mlxgk_sampling::{Chooser, Rules};
/// use mlxgk_samplers::Seed;
///
/// let config = GenerationConfig { repetition_penalty: Some(1.2), ..Default::default() };
/// let resolved = config.resolve(&GenerationConfig::default(), 5, None)?;
/// let rules = Rules::new(&resolved, 100, None, Seed::Torch(42))?;
/// assert_eq!(rules.processors.len(), 1);
/// assert!(matches!(rules.chooser, Chooser::Greedy)); // HF's default
/// assert_eq!(rules.stop.limits().max_new_tokens, 20); // HF's, too
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Rules {
    /// What the scores go through before a token is chosen.
    pub processors: ProcessorList,
    /// How a token is chosen, and from which random stream.
    pub chooser: Chooser,
    /// When a row ends.
    pub stop: StopConditions,
    /// What in a grammar is not enforced, such as a `format` without a meaning.
    pub warnings: Vec<Warning>,
}

impl Rules {
    /// The likeliest token, without processors, until `stop` ends the row.
    pub fn greedy(stop: impl Into<StopConditions>) -> Self {
        Self {
            processors: ProcessorList::default(),
            chooser: Chooser::Greedy,
            stop: stop.into(),
            warnings: Vec::new(),
        }
    }

    /// The rules that the fields ask for, over `vocab_size` scores: HF's processors and warpers, the
    /// grammar, DRY, a draw from `streams` where the config samples, end tokens, length, `max_time`
    /// (from now on) and stop strings.
    ///
    /// Fields about text ([`field_about_text`](Self::field_about_text)) need `text`.
    ///
    /// # Errors
    /// Where a parameter is outside its range, a grammar cannot be used, or a field is about text
    /// and there is none; the error has the [field](Error::field) where it is one.
    pub fn new(
        resolved: &Resolved,
        vocab_size: usize,
        text: Option<&Text>,
        streams: impl Into<Streams>,
    ) -> Result<Self> {
        let parts = resolved.pipeline(vocab_size).map_err(|e| of_config(&e))?;
        let limits = Limits {
            max_new_tokens: resolved.lengths.max_new_tokens(),
            eos: resolved.special_tokens.eos.clone(),
        };
        let mut rules = Self {
            processors: parts.processors,
            chooser: if resolved.do_sample {
                Chooser::sample(&parts.warpers, parts.after, streams)
            } else {
                Chooser::Greedy
            },
            stop: limits.into(),
            warnings: Vec::new(),
        };
        if let Some(seconds) = resolved.config.max_time {
            let limit = Duration::try_from_secs_f64(seconds)
                .map_err(|_| Error::parameter("max_time", "a number of seconds", seconds))?;
            rules.stop.push(Box::new(MaxTime::new(Instant::now(), limit)));
        }
        text::add(&mut rules, resolved, vocab_size, text)?;
        Ok(rules)
    }

    /// The first field set that is about text, so that it takes a tokenizer.
    pub fn field_about_text(resolved: &Resolved) -> Option<&'static str> {
        let config = &resolved.config;
        let dry = config.dry_multiplier.is_some_and(|it| it != 0.0);
        let breakers = config.dry_sequence_breakers.as_ref().is_some_and(|it| !it.is_empty());
        let fields = [
            ("json_schema", config.json_schema.is_some()),
            ("regex", config.regex.is_some()),
            ("grammar", config.grammar.is_some()),
            ("stop_strings", config.stop_strings.is_some()),
            ("dry_sequence_breakers", dry && breakers),
        ];
        fields.into_iter().find(|(_, is_set)| *is_set).map(|(field, _)| field)
    }
}

/// A config's error as one of this crate.
fn of_config(e: &ConfigError) -> Error {
    match e.field() {
        Some(field) => Error::about(field, ErrorKind::Parameter, e.to_string()),
        None => Error::new(ErrorKind::Parameter, e.to_string()),
    }
}
