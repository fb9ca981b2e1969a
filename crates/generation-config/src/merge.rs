//! HF's field-wise merge: kwargs, then the passed config, then the model's, then the defaults.

use serde_json::Value;

use crate::json::{field_of_alias, object};
use crate::validate::UserSet;
use crate::value::EarlyStopping;
use crate::{Error, ErrorKind, GenerationConfig, RequestFields, Result, Warning, WarningKind};

/// HF's `_get_default_generation_params`, for what is unset everywhere.
///
/// `max_length` is 20 there; [`Merged::resolve`] reads it as 20 new tokens.
pub fn default_generation_params() -> GenerationConfig {
    GenerationConfig {
        max_length: Some(20),
        min_length: Some(0),
        do_sample: Some(false),
        use_cache: Some(true),
        early_stopping: Some(EarlyStopping::Heuristic),
        num_beams: Some(1),
        temperature: Some(1.0),
        top_k: Some(50),
        top_p: Some(1.0),
        typical_p: Some(1.0),
        repetition_penalty: Some(1.0),
        length_penalty: Some(1.0),
        no_repeat_ngram_size: Some(0),
        encoder_no_repeat_ngram_size: Some(0),
        num_return_sequences: Some(1),
        output_scores: Some(false),
        return_dict_in_generate: Some(false),
        remove_invalid_values: Some(false),
        epsilon_cutoff: Some(0.0),
        eta_cutoff: Some(0.0),
        encoder_repetition_penalty: Some(1.0),
        num_assistant_tokens: Some(20),
        num_assistant_tokens_schedule: Some("constant".to_owned()),
        assistant_confidence_threshold: Some(0.4),
        assistant_lookbehind: Some(10),
        target_lookbehind: Some(10),
        num_beam_groups: Some(1),
        diversity_penalty: Some(0.0),
        ..GenerationConfig::default()
    }
}

/// The keyword arguments of one call, the strongest source.
///
/// They differ from a [`GenerationConfig`] in one thing: an argument can be given as `None`, which
/// unsets what every other source says. `generate(top_k=None)` draws from the whole vocabulary,
/// while a passed config with `top_k = None` inherits.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, Kwargs, Sources};
/// use serde_json::json;
///
/// let passed = GenerationConfig { top_k: Some(20), ..Default::default() };
/// let model = GenerationConfig::default();
/// let kwargs = Kwargs::from_json(&json!({"do_sample": true, "top_k": null}))?;
/// let merged = Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge()?;
/// assert_eq!(merged.config.top_k, None);
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kwargs {
    given: GenerationConfig,
    nones: Vec<&'static str>,
}

impl Kwargs {
    /// Reads a JSON object, in which `null` stands for `None`.
    ///
    /// # Errors
    /// [`ErrorKind::Json`] and [`ErrorKind::Type`], as [`GenerationConfig::from_json`].
    pub fn from_json(value: &Value) -> Result<Self> {
        let object = object(value)?;
        let is_none = |field: &str| object.get(field).is_some_and(Value::is_null);
        let fields = GenerationConfig::FIELDS.iter().copied();
        Ok(Self {
            given: GenerationConfig::from_fields(object)?,
            nones: fields.filter(|it| is_none(it)).collect(),
        })
    }

    /// The same arguments, and these where none is given.
    #[must_use]
    pub fn or(mut self, mut others: GenerationConfig) -> Self {
        for field in &self.nones {
            others.unset(field);
        }
        self.given.inherit(&others);
        self
    }

    /// The fields that are given, including as `None`.
    fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.given.set_fields().chain(self.nones.iter().copied())
    }
}

/// Every field that is set is an argument that is given.
impl From<GenerationConfig> for Kwargs {
    fn from(given: GenerationConfig) -> Self {
        Self { given, nones: Vec::new() }
    }
}

/// Where the fields of one call come from, strongest first.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, Kwargs, Sources};
///
/// let kwargs = Kwargs::from(GenerationConfig { top_p: Some(0.9), ..Default::default() });
/// let passed = GenerationConfig { do_sample: Some(true), ..Default::default() };
/// let model = GenerationConfig { top_p: Some(0.5), top_k: Some(20), ..Default::default() };
///
/// let merged = Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge()?.config;
/// assert_eq!(merged.top_p, Some(0.9));
/// assert_eq!(merged.do_sample, Some(true));
/// assert_eq!(merged.top_k, Some(20));
/// assert_eq!(merged.temperature, Some(1.0));
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The arguments of the call; on the command line, the flags.
    pub kwargs: &'a Kwargs,
    /// The config that the caller passed; on the command line, `--generation-config`.
    pub passed: &'a GenerationConfig,
    /// The model's own `generation_config.json`.
    pub model: &'a GenerationConfig,
}

/// What the sources say together.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, Kwargs, Sources};
///
/// let (kwargs, model) = (Kwargs::default(), GenerationConfig::default());
/// let passed = GenerationConfig { temperature: Some(0.7), ..Default::default() };
/// let merged = Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge()?;
/// // Nobody set a length: HF's 20 stands, and counts new tokens.
/// assert!(merged.has_default_max_length);
/// assert_eq!(merged.resolve(7, None)?.lengths.max_length, 27);
/// // Nothing is drawn, so that the temperature does nothing.
/// assert_eq!(merged.warnings[0].field(), "temperature");
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The merged fields, defaults included.
    pub config: GenerationConfig,
    /// Whether no source set `max_length`, so that it means new tokens.
    pub has_default_max_length: bool,
    /// Whether no source set `min_length`.
    pub has_default_min_length: bool,
    /// Warnings about the fields.
    pub warnings: Vec<Warning>,
}

impl Sources<'_> {
    /// Merges field by field and validates, as HF's `_prepare_generation_config`.
    ///
    /// Like HF it validates after each step, so that a passed config which contradicts the model's
    /// is refused even if an argument would fix it. The warnings are those of the result
    /// alone: HF also warns of what holds halfway only.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] as [`GenerationConfig::validate`]; [`ErrorKind::UnknownField`] for an
    /// argument that is neither a field nor an entry of one of the two configs.
    pub fn merge(&self) -> Result<Merged> {
        let Self { kwargs, passed, model } = self;
        let mut config = (*passed).clone();
        config.inherit(model);
        config.validate()?;
        config.inherit(&default_generation_params());
        config.validate()?;

        let weaker = std::mem::replace(&mut config, kwargs.given.clone());
        let custom = std::mem::take(&mut config.unknown);
        config.inherit(&weaker);
        for field in &kwargs.nones {
            config.unset(field);
        }
        let user_set: Vec<&str> = kwargs.fields().collect();
        let mut warnings = config.validate_for(&UserSet::Only(&user_set))?;
        for (key, value) in custom {
            match config.unknown.get_mut(&key) {
                Some(entry) => *entry = value,
                None if field_of_alias(&key).is_some()
                    || RequestFields::meaning(&key).is_some() =>
                {
                    warnings.push(unknown_field(&key));
                    config.unknown.insert(key, value);
                }
                // HF lets an unknown argument pass that is `None`.
                None if value.is_null() => {}
                None => {
                    let message = format!("unknown field `{key}`");
                    return Err(Error::of(ErrorKind::UnknownField, &key, message));
                }
            }
        }
        warnings.extend(passed.unknown.keys().map(|key| unknown_field(key)));

        // Gemma's files ask for a cache that HF has since replaced; it ignores them, and so does
        // this.
        if config.cache_implementation.as_deref() == Some("hybrid") {
            config.cache_implementation = None;
        }
        let sources = [&kwargs.given, passed, model];
        Ok(Merged {
            config,
            has_default_max_length: sources.iter().all(|it| it.max_length.is_none()),
            has_default_min_length: sources.iter().all(|it| it.min_length.is_none()),
            warnings,
        })
    }
}

fn unknown_field(key: &str) -> Warning {
    let meaning = RequestFields::meaning(key);
    let message = match (field_of_alias(key), meaning) {
        (Some(field), _) => format!("`{key}` is read as `{field}`"),
        (None, Some(meaning)) => format!("`{key}` is read as {meaning}"),
        (None, None) => format!("unknown field `{key}`; it changes nothing"),
    };
    Warning::new(WarningKind::UnknownField, key, message)
}
