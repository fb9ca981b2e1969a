//! The ids that begin, end and pad a sequence, gathered from the three places that name them.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{CONFIG, Files, GENERATION_CONFIG};
use crate::tokenizer::Tokenizer;

/// Where an id was found.
///
/// ```
/// use mlxgk_tokenizer_bridge::{Files, IdSource, SpecialIds};
///
/// let config = Some(br#"{"eos_token_id": 2}"#.into());
/// let mut files = Files { config, ..Files::default() };
/// assert_eq!(SpecialIds::from_files(&files, None)?.eos_source, Some(IdSource::Config));
/// files.generation_config = Some(br#"{"eos_token_id": null}"#.into());
/// assert_eq!(SpecialIds::from_files(&files, None)?.eos_source, None);
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdSource {
    /// `generation_config.json`.
    GenerationConfig,
    /// `config.json`.
    Config,
    /// The tokenizer's named special token.
    Tokenizer,
}

/// The ids that begin, end and pad a sequence.
///
/// transformers' `generate()` takes all three from `generation_config.json` where that file exists,
/// and from `config.json` where it does not; the tokenizer's are never asked. A
/// `generation_config.json` without `eos_token_id` therefore never stops there, although the model
/// has an end token.
///
/// Here each id is looked for by itself, in this order: `generation_config.json`, `config.json` (and
/// in it `text_config`, for models with several parts), the tokenizer. The first that *names* the
/// field wins as a whole: lists are not merged, and an explicit `null` in `generation_config.json`
/// means none, as it does in transformers. So wherever transformers finds an id, the same one is
/// found here; [`eos_source`](Self::eos_source) tells who wants to stop only where it does.
///
/// Negative ids, which some older configs use for "none", count as absent.
///
/// ```
/// use mlxgk_tokenizer_bridge::{Files, SpecialIds};
///
/// let files = Files {
///     config: Some(br#"{"bos_token_id": 1, "eos_token_id": 2}"#.into()),
///     generation_config: Some(br#"{"eos_token_id": [7, 2]}"#.into()),
///     ..Files::default()
/// };
/// let ids = SpecialIds::from_files(&files, None)?;
/// assert_eq!(ids.bos, Some(1));
/// assert_eq!(ids.eos, [7, 2]);
/// assert_eq!(ids.pad, Some(7));
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// The token that begins a sequence.
    pub bos: Option<u32>,
    /// The tokens that end a sequence, any of them; empty when the model has none.
    pub eos: Vec<u32>,
    /// The token that fills up finished or shorter rows: the configs' own, else the first end token
    /// (transformers' rule), else the tokenizer's.
    pub pad: Option<u32>,
    /// Where the end tokens were found; `None` when there are none.
    pub eos_source: Option<IdSource>,
}

impl SpecialIds {
    /// Gathers the ids; without a tokenizer, from the two configs alone.
    ///
    /// # Errors
    ///
    /// A config that is not UTF-8 or JSON, or an id that is not a whole number (or, for
    /// `eos_token_id`, a list of them).
    pub fn from_files(files: &Files<'_>, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let generation = files.generation_config.as_deref();
        let generation = Ids::read(files, GENERATION_CONFIG, generation)?;
        let config = Ids::read(files, CONFIG, files.config.as_deref())?;
        let named = |name| {
            let tokenizer = tokenizer?;
            tokenizer.token_to_id(tokenizer.special_tokens().get(name)?)
        };

        let eos = [
            (IdSource::GenerationConfig, generation.eos),
            (IdSource::Config, config.eos),
            (IdSource::Tokenizer, named("eos_token").map(|id| vec![id])),
        ];
        let eos = eos.into_iter().find_map(|(source, ids)| Some((source, ids?)));
        let (source, eos) = eos.map_or((None, Vec::new()), |(source, ids)| (Some(source), ids));

        let bos = generation.bos.or(config.bos);
        let pad = generation.pad.or(config.pad).flatten();
        Ok(Self {
            bos: bos.unwrap_or_else(|| named("bos_token")),
            pad: pad.or(eos.first().copied()).or_else(|| named("pad_token")),
            eos_source: source.filter(|_| !eos.is_empty()),
            eos,
        })
    }
}

/// One config's ids. The outer level says whether the config names the field at all.
#[derive(Default)]
struct Ids {
    bos: Option<Option<u32>>,
    eos: Option<Vec<u32>>,
    pad: Option<Option<u32>>,
}

impl Ids {
    fn read(files: &Files<'_>, file: &str, content: Option<&[u8]>) -> Result<Self> {
        let Some(config) = files.json::<Map<String, Value>>(file, content)? else {
            return Ok(Self::default());
        };
        let text_config = config.get("text_config");
        // transformers fills a model config's absent fields with `None`, so there `null` is absent.
        let null_is_absent = file == CONFIG;
        let field = |name: &str| {
            let given = config.get(name).filter(|it| !(null_is_absent && it.is_null()));
            let value = given.or_else(|| text_config?.get(name).filter(|it| !it.is_null()))?;
            let what = "is not a token id or a list of token ids";
            let wrong = || Error::file(files.name(file), format!("`{name}` {what}"));
            Some(token_ids(value).ok_or_else(wrong))
        };
        let single = |name: &str| -> Result<Option<Option<u32>>> {
            let ids = field(name).transpose()?;
            Ok(ids.map(|ids| ids.first().copied()))
        };
        Ok(Self {
            bos: single("bos_token_id")?,
            eos: field("eos_token_id").transpose()?,
            pad: single("pad_token_id")?,
        })
    }
}

/// The ids of a number, a list or `null`; negative ones are left out.
fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| match value.as_i64()? {
        id if id < 0 => Some(None),
        id => u32::try_from(id).ok().map(Some),
    };
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids
            .iter()
            .map(id)
            .collect::<Option<Vec<_>>>()
            .map(|ids| ids.into_iter().flatten().collect()),
        value => id(value).map(|id| id.into_iter().collect()),
    }
}
