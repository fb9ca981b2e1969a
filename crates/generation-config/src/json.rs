//! JSON in and out: values, files, serde.

use std::{io::Read, path::Path};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::value::{Mismatch, describe};
use crate::{Error, ErrorKind, GenerationConfig, Result};

/// Which part of a composite `config.json` describes the decoder; HF looks in this order.
const TEXT_CONFIGS: [&str; 3] = ["decoder", "generator", "text_config"];

impl GenerationConfig {
    /// Reads the fields of a JSON object and checks them as [`validate`](Self::validate) does.
    ///
    /// `null` leaves a field unset. Entries that are not fields go to [`unknown`](Self::unknown). Some
    /// names of other engines are read as HF's (`max_tokens`, `eos_token_ids`, `stop`,
    /// `stop_sequences`, `num_draft_tokens`), which a warning of the [merge](crate::Sources::merge)
    /// says.
    ///
    /// # Errors
    /// [`ErrorKind::Json`] where `value` is not an object, [`ErrorKind::Type`] where a field holds
    /// another type than HF's, [`ErrorKind::Value`] where HF would refuse its value.
    ///
    /// ```
    /// use mlxgk_generation_config::GenerationConfig;
    /// use serde_json::json;
    ///
    /// let config = GenerationConfig::from_json(&json!({"top_k": 20, "eos_token_id": [2, 7]}))?;
    /// assert_eq!(config.top_k, Some(20));
    ///
    /// let error = GenerationConfig::from_json(&json!({"top_k": "a"})).unwrap_err();
    /// assert_eq!(error.to_string(), r#"`top_k` must be an integer, found the string "a""#);
    /// # Ok::<(), mlxgk_generation_config::Error>(())
    /// ```
    pub fn from_json(value: &Value) -> Result<Self> {
        let config = Self::from_fields(object(value)?)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads a `generation_config.json`, as [`from_json`](Self::from_json).
    ///
    /// # Errors
    /// Those of [`from_json`](Self::from_json) and [`ErrorKind::File`]; each names the file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        read_object(path.as_ref())
            .and_then(|value| Self::from_json(&value))
            .map_err(|it| it.in_file(path.as_ref()))
    }

    /// What a model's `config.json` says about generation: HF's fallback for a folder without
    /// `generation_config.json`.
    ///
    /// Every entry with the name of a field counts, first at the top, then in the part that
    /// describes the text decoder. Nothing else of the file is kept.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_model_config(value: &Value) -> Result<Self> {
        let outer = object(value)?;
        let mut config = Self::from_fields(outer)?;
        config.unknown.clear();
        config.validate()?;
        let inner = TEXT_CONFIGS
            .iter()
            .filter_map(|name| outer.get(*name).and_then(Value::as_object))
            .find(|it| !it.is_empty());
        if let Some(inner) = inner {
            let mut inner = Self::from_fields(inner)?;
            inner.unknown.clear();
            config.inherit(&inner);
        }
        config.from_model_config = Some(true);
        let outputs = [
            config.output_attentions,
            config.output_hidden_states,
            config.output_scores,
            config.output_logits,
        ];
        if outputs.contains(&Some(true)) {
            config.return_dict_in_generate = Some(true);
        }
        Ok(config)
    }

    /// The fields that are set, and the unknown entries, as a JSON object.
    pub fn to_json(&self) -> Value {
        let known = self.set_fields().filter_map(|it| Some((it.to_owned(), self.get(it)?)));
        let unknown = self.unknown.iter().filter(|(key, _)| field_of_alias(key).is_none());
        let unknown = unknown.map(|(key, value)| (key.clone(), value.clone()));
        Value::Object(known.chain(unknown).collect())
    }

    /// Reads types only; what a value may be is for `validate`.
    pub(crate) fn from_fields(object: &Map<String, Value>) -> Result<Self> {
        let mut config = Self::default();
        for (key, value) in object {
            // HF drops this one, which old files carry, silently.
            if key == "_commit_hash" {
                continue;
            }
            if config.read(key, value).map_err(|it| wrong_type(key, &it))? {
                continue;
            }
            if let Some(field) = field_of_alias(key) {
                if object.contains_key(field) {
                    let message = format!("`{key}` is another name of `{field}`; give one of them");
                    return Err(Error::of(ErrorKind::Value, field, message));
                }
                config.read(field, value).map_err(|it| wrong_type(key, &it))?;
            }
            config.unknown.insert(key.clone(), value.clone());
        }
        Ok(config)
    }
}

/// The field that another engine's name stands for.
pub(crate) fn field_of_alias(key: &str) -> Option<&'static str> {
    match key {
        "max_tokens" => Some("max_new_tokens"),
        "eos_token_ids" => Some("eos_token_id"),
        "stop" | "stop_sequences" => Some("stop_strings"),
        "num_draft_tokens" => Some("num_assistant_tokens"),
        _ => None,
    }
}

/// Reads JSON as Python writes and reads it: with `NaN`, `Infinity` and `-Infinity`, each of which
/// becomes `{"__float__": "Infinity"}` as in transformers 5. No field takes one of them, but an entry
/// without a field may hold one.
///
/// # Errors
/// [`ErrorKind::Json`] where it is not JSON.
///
/// ```
/// let value = mlxgk_generation_config::read_json(br#"{"top_k": 5, "limits": [0.0, Infinity]}"#)?;
/// assert_eq!(value["limits"][1]["__float__"], "Infinity");
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
pub fn read_json(bytes: &[u8]) -> Result<Value> {
    let read = serde_json::from_slice(bytes).or_else(|e| match tag_non_finite(bytes) {
        Some(tagged) => serde_json::from_slice(&tagged).map_err(|_| e),
        None => Err(e),
    });
    read.map_err(|e| Error::new(ErrorKind::Json, format!("is not valid JSON ({e})")))
}

/// The same text with objects in place of what JSON does not have; `None` where there is none.
fn tag_non_finite(bytes: &[u8]) -> Option<Vec<u8>> {
    const NAMES: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut tagged, mut at, mut copied, mut in_string) = (Vec::new(), 0, 0, false);
    while at < bytes.len() {
        match NAMES.into_iter().find(|name| !in_string && bytes[at..].starts_with(name)) {
            Some(name) => {
                tagged.extend_from_slice(&bytes[copied..at]);
                tagged.extend([br#"{"__float__": ""#, name, br#""}"#].concat());
                at += name.len();
                copied = at;
            }
            None => {
                in_string ^= bytes[at] == b'"';
                at += if in_string && bytes[at] == b'\\' { 2 } else { 1 };
            }
        }
    }
    tagged.extend_from_slice(bytes.get(copied..).unwrap_or_default());
    (copied > 0).then_some(tagged)
}

pub(crate) fn object(value: &Value) -> Result<&Map<String, Value>> {
    value.as_object().ok_or_else(|| {
        let message =
            format!("a generation config must be a JSON object, found {}", describe(value));
        Error::new(ErrorKind::Json, message)
    })
}

fn wrong_type(field: &str, mismatch: &Mismatch) -> Error {
    let Mismatch { path, expected, found } = mismatch;
    let message = format!("`{field}{path}` must be {expected}, found {found}");
    Error::of(ErrorKind::Type, field, message)
}

/// The longest file, in bytes.
const LONGEST: u64 = 16 << 20;

fn read_object(path: &Path) -> Result<Value> {
    let failed = |it: std::io::Error| Error::new(ErrorKind::File, format!("cannot be read ({it})"));
    let kind = std::fs::metadata(path).map_err(failed)?;
    // Opening a named pipe would wait for a writer. To the pipe of a shell's `<(command)` no path leads.
    if !kind.is_file() && !kind.is_dir() && std::fs::canonicalize(path).is_ok() {
        return Err(failed(std::io::Error::other("it is a device or a pipe, not a file")));
    }
    let too_long = || {
        let most = LONGEST >> 20;
        failed(std::io::Error::other(format!("it has more than {most} MiB")))
    };
    if kind.is_file() && kind.len() > LONGEST {
        return Err(too_long());
    }
    let (file, mut bytes) = (std::fs::File::open(path).map_err(failed)?, Vec::new());
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(too_long());
    }
    read_json(&bytes)
}

impl Serialize for GenerationConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// Types are checked; values are not, as the object may be one of several to be merged.
impl<'de> Deserialize<'de> for GenerationConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Map::deserialize(deserializer)?;
        Self::from_fields(&object).map_err(serde::de::Error::custom)
    }
}
