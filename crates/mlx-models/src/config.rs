//! `config.json`: typed access with errors that name the field, and what all families share.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result};

/// A JSON object whose fields are read one by one.
///
/// The families read HF's field names directly, so a reader can compare a family's file with HF's
/// configuration class line by line.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// What errors call it: the file's path, or the field path of a nested object.
    name: String,
    fields: Map<String, Value>,
}

impl Config {
    /// Reads a JSON file.
    ///
    /// # Errors
    /// When it cannot be read or is not a JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path)
            .map_err(|e| Error::new(ErrorKind::File, format!("cannot read {name}: {e}")))?;
        Self::parse(&name, &bytes)
    }

    /// Parses JSON bytes; `name` is what errors call them.
    ///
    /// # Errors
    /// When the bytes are not a JSON object.
    pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(Self { name: name.to_owned(), fields }),
            Ok(other) => Err(Error::new(
                ErrorKind::Config,
                format!("{name} must hold a JSON object, found {}", describe(&other)),
            )),
            Err(e) => Err(Error::new(ErrorKind::Config, format!("{name} is not valid JSON: {e}"))),
        }
    }

    /// An error about a field of this file.
    pub(crate) fn error(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Config, format!("{}: `{key}` {what}", self.name))
    }

    /// The field's value; absent and `null` are the same, as in HF.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Whether the field is there at all, `null` included.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.fields.contains_key(key)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key)
            .map(|value| {
                read(value).ok_or_else(|| {
                    self.error(key, format_args!("must be {kind}, found {}", describe(value)))
                })
            })
            .transpose()
    }

    pub(crate) fn usize(&self, key: &str) -> Result<Option<usize>> {
        // Python writes some whole numbers as floats (`131072.0`).
        let whole = |value: &Value| match value.as_f64() {
            Some(float) if float >= 0.0 && float.fract() == 0.0 && float < 1e15 => {
                Some(float as usize)
            }
            _ => None,
        };
        self.typed(key, "a whole number", whole)
    }

    pub(crate) fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |value| value.as_f64().map(|it| it as f32))
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A number above 0, for what is divided by or raised to a power.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.f64(key)? {
            Some(it) if it <= 0.0 => {
                Err(self.error(key, format_args!("must be above 0, found {it}")))
            }
            found => Ok(found),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>> {
        let fields = self.typed(key, "an object", Value::as_object)?;
        Ok(fields
            .map(|fields| Self { name: format!("{}: `{key}`", self.name), fields: fields.clone() }))
    }

    pub(crate) fn list<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.typed(key, kind, |value| value.as_array()?.iter().map(&read).collect())
    }

    /// The field, which must be there.
    pub(crate) fn require<T>(
        &self,
        key: &str,
        read: impl Fn(&Self, &str) -> Result<Option<T>>,
    ) -> Result<T> {
        read(self, key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// The same object, with these values where a field is absent.
    pub(crate) fn or(mut self, defaults: &[(&str, usize)]) -> Self {
        for (key, value) in defaults {
            self.fields.entry(*key).or_insert_with(|| Value::from(*value));
        }
        self
    }

    /// An object without fields, for a dictionary that may be left out.
    pub(crate) fn empty(&self, key: &str) -> Self {
        Self { name: format!("{}: `{key}`", self.name), fields: Map::new() }
    }

    /// The entries, for objects whose keys are data.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.fields.iter()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    }
}

/// MLX counts dimensions in 32 bits.
const MAX_SIZE: usize = i32::MAX as usize;

/// Far more than any model has; beyond it lies nothing but a typing error and its allocations.
const MAX_LAYERS: usize = 65_535;

/// HF's class defaults that differ between families; the rest is the same everywhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    /// `num_key_value_heads` when the field is absent; `None`: as many as heads.
    pub(crate) kv_heads: Option<usize>,
    /// `head_dim` when the field is absent; `None`: hidden size over heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) eps: f32,
    pub(crate) tied: bool,
    pub(crate) max_positions: usize,
}

/// The sizes every decoder has.
#[derive(Debug, Clone)]
pub(crate) struct Dims {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocab: usize,
    pub(crate) eps: f32,
    pub(crate) tied: bool,
    pub(crate) max_positions: usize,
}

impl Dims {
    pub(crate) fn read(config: &Config, defaults: &Defaults) -> Result<Self> {
        let check = |key: &str, value: usize, most: usize| match value {
            0 => Err(config.error(key, "must be above 0")),
            value if value > most => {
                Err(config.error(key, format_args!("is {value}; at most {most} are possible")))
            }
            value => Ok(value),
        };
        let size = |key: &str| check(key, config.require(key, Config::usize)?, MAX_SIZE);
        let hidden = size("hidden_size")?;
        let heads = size("num_attention_heads")?;
        let default_kv = if config.has("num_key_value_heads") { None } else { defaults.kv_heads };
        let kv_heads = config.usize("num_key_value_heads")?.or(default_kv).unwrap_or(heads);
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(config.error(
                "num_key_value_heads",
                format_args!("is {kv_heads}, which does not divide the {heads} attention heads"),
            ));
        }
        let default_dim = if config.has("head_dim") { None } else { defaults.head_dim };
        let head_dim = config.usize("head_dim")?.or(default_dim).unwrap_or(hidden / heads);
        let layers = config.require("num_hidden_layers", Config::usize)?;
        let max_positions =
            config.usize("max_position_embeddings")?.unwrap_or(defaults.max_positions);
        Ok(Self {
            hidden,
            layers: check("num_hidden_layers", layers, MAX_LAYERS)?,
            heads,
            kv_heads,
            head_dim: check("head_dim", head_dim, MAX_SIZE)?,
            intermediate: size("intermediate_size")?,
            vocab: size("vocab_size")?,
            eps: config.f32("rms_norm_eps")?.unwrap_or(defaults.eps),
            tied: config.bool("tie_word_embeddings")?.unwrap_or(defaults.tied),
            max_positions: check("max_position_embeddings", max_positions, usize::MAX)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("config.json", text.as_bytes()).unwrap()
    }

    #[test]
    fn a_wrong_type_names_the_field_and_what_was_found() {
        let error = config(r#"{"hidden_size": "wide"}"#).usize("hidden_size").unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.json: `hidden_size` must be a whole number, found \"wide\""
        );
    }

    #[test]
    fn null_is_absent_and_whole_floats_are_numbers() {
        let config = config(r#"{"a": null, "b": 131072.0, "c": 1.5}"#);
        assert_eq!(config.usize("a").unwrap(), None);
        assert_eq!(config.usize("b").unwrap(), Some(131_072));
        assert!(config.usize("c").is_err());
    }

    #[test]
    fn heads_must_divide() {
        let config =
            config(r#"{"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 3}"#);
        let defaults =
            Defaults { kv_heads: None, head_dim: None, eps: 1e-6, tied: false, max_positions: 8 };
        assert!(
            Dims::read(&config, &defaults).unwrap_err().to_string().contains("does not divide")
        );
    }
}
