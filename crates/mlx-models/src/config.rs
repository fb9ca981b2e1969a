//! `config.json`: typed access with errors that name the field, and what all families share.

use std::{cell::RefCell, collections::BTreeSet, path::Path, rc::Rc};

use serde_json::{Map, Value};

use crate::{
    Error, ErrorKind, Result,
    input::{quoted, read_json_file, shortened, shortened_to},
};

/// A JSON object whose fields are read one by one.
///
/// The families read HF's field names directly, so a reader can compare a family's file with HF's
/// configuration class line by line.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// What errors call it: the file's path, or the field path of a nested object.
    name: String,
    fields: Map<String, Value>,
    /// How many numbers the weights hold: what is larger is refused before anything is allocated.
    most: usize,
    /// The fields that were asked for, each behind the name of its object: of this object, its copies and
    /// those in it.
    asked: Rc<RefCell<BTreeSet<(String, String)>>>,
}

impl Config {
    /// Reads a JSON file.
    ///
    /// # Errors
    /// When it cannot be read or is not a JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::parse(&path.display().to_string(), &read_json_file(path)?)
    }

    /// Parses JSON bytes; `name` is what errors call them.
    ///
    /// # Errors
    /// When the bytes are not a JSON object.
    pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let parsed = serde_json::from_slice(bytes).or_else(|e| match tag_non_finite(bytes) {
            Some(tagged) => serde_json::from_slice(&tagged),
            None => Err(e),
        });
        match parsed {
            Ok(Value::Object(fields)) => {
                let (name, most) = (name.to_owned(), usize::MAX);
                Ok(Self { name, fields, most, asked: Rc::default() })
            }
            Ok(other) => Err(Error::new(
                ErrorKind::Config,
                format!("{name} must hold a JSON object, found {}", describe(&other)),
            )),
            Err(e) => Err(Error::new(
                ErrorKind::Config,
                format!("{name} is not valid JSON: {}", shortened(&e.to_string())),
            )),
        }
    }

    /// The same object, for weights that hold so many numbers.
    pub(crate) fn for_weights(self, numbers: usize) -> Self {
        Self { most: numbers, ..self }
    }

    /// An error about a field of this file.
    pub(crate) fn error(&self, key: &str, what: impl std::fmt::Display) -> Error {
        let what = shortened_to(300, &what.to_string());
        Error::new(ErrorKind::Config, format!("{}: {} {what}", self.name, quoted(key)))
    }

    /// The field's value; absent and `null` are the same, as in HF.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.ask(key);
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Whether the field is there at all, `null` included.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.ask(key);
        self.fields.contains_key(key)
    }

    fn ask(&self, key: &str) {
        self.asked.borrow_mut().insert((self.name.clone(), key.to_owned()));
    }

    /// Whether this object's field was asked for, there or not.
    pub(crate) fn was_read(&self, key: &str) -> bool {
        self.asked.borrow().contains(&(self.name.clone(), key.to_owned()))
    }

    /// The objects in this one, each with its key.
    pub(crate) fn objects(&self) -> impl Iterator<Item = (&String, Self)> {
        let objects = self.fields.iter().filter_map(|(key, value)| Some((key, value.as_object()?)));
        objects.map(|(key, fields)| (key, Self { fields: fields.clone(), ..self.empty(key) }))
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
        Ok(fields.map(|fields| Self { fields: fields.clone(), ..self.empty(key) }))
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

    /// The same object, with `value` where the field is absent or `null`.
    pub(crate) fn or_value(mut self, key: &str, value: Value) -> Self {
        if self.get(key).is_none() {
            self.fields.insert(key.to_owned(), value);
        }
        self
    }

    /// The same object, with what it has under a second name under the usual one.
    pub(crate) fn renamed(mut self, second: &str, usual: &str) -> Self {
        if let Some(value) = self.get(second).cloned() {
            self.fields.insert(usual.to_owned(), value);
        }
        self
    }

    /// The same object with other values of fields of the language model, which a wrapper has in its
    /// `text_config`.
    pub(crate) fn with_text_fields<const N: usize>(mut self, fields: [(&str, Value); N]) -> Self {
        let of_text = match self.fields.get_mut("text_config") {
            Some(Value::Object(text)) => text,
            _ => &mut self.fields,
        };
        of_text.extend(fields.map(|(key, value)| (key.to_owned(), value)));
        self
    }

    /// An object without fields, for a dictionary that may be left out.
    pub(crate) fn empty(&self, key: &str) -> Self {
        let name = format!("{}: `{key}`", self.name);
        Self { name, fields: Map::new(), most: self.most, asked: Rc::clone(&self.asked) }
    }

    /// The entries, for objects whose keys are data.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.fields.iter()
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(fields) => match fields.get("__float__").and_then(Value::as_str) {
            Some(name) => shortened(name),
            None => "an object".to_owned(),
        },
        scalar => shortened(&scalar.to_string()),
    }
}

/// JSON in which Python's `NaN`, `Infinity` and `-Infinity` are written as transformers 5 writes them,
/// `{"__float__": "Infinity"}`; `None` where there are none.
///
/// No size may be one of them, but a field that is not read may.
fn tag_non_finite(bytes: &[u8]) -> Option<Vec<u8>> {
    const NAMES: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut tagged = Vec::with_capacity(bytes.len() + 32);
    let (mut rest, mut in_string) = (bytes, false);
    while let [first, after @ ..] = rest {
        let name = NAMES.into_iter().find(|name| !in_string && rest.starts_with(name));
        if let Some(name) = name {
            tagged.extend([br#"{"__float__": ""#, name, br#""}"#].concat());
            rest = &rest[name.len()..];
            continue;
        }
        let length = match first {
            b'\\' if in_string && !after.is_empty() => 2,
            _ => 1,
        };
        in_string ^= *first == b'"';
        tagged.extend(&rest[..length]);
        rest = &rest[length..];
    }
    (tagged.len() > bytes.len()).then_some(tagged)
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

/// The sizes that every decoder has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) vocab: usize,
    pub(crate) eps: f32,
    pub(crate) tied: bool,
    pub(crate) max_positions: usize,
}

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Of queries.
    pub(crate) count: usize,
    /// Of keys and values; divides `count`.
    pub(crate) kv: usize,
    pub(crate) dim: usize,
}

impl Dims {
    pub(crate) fn read(config: &Config, defaults: &Defaults) -> Result<Self> {
        let layers = config.require("num_hidden_layers", Config::usize)?;
        let max_positions =
            config.usize("max_position_embeddings")?.unwrap_or(defaults.max_positions);
        let hidden = config.size("hidden_size")?;
        Ok(Self {
            hidden,
            layers: config.check("num_hidden_layers", layers, MAX_LAYERS)?,
            vocab: config.rows(
                "vocab_size",
                config.require("vocab_size", Config::usize)?,
                hidden,
            )?,
            eps: config.f32("rms_norm_eps")?.unwrap_or(defaults.eps),
            tied: config.bool("tie_word_embeddings")?.unwrap_or(defaults.tied),
            max_positions: config.check("max_position_embeddings", max_positions, usize::MAX)?,
        })
    }
}

impl Config {
    /// Heads as `usual`, but for what this object has of them.
    pub(crate) fn heads_like(&self, usual: Heads) -> Result<Heads> {
        let defaults = Defaults {
            kv_heads: Some(usual.kv),
            head_dim: Some(usual.dim),
            eps: 0.0,
            tied: false,
            max_positions: 1,
        };
        let mut heads = self.clone().or_value("num_attention_heads", Value::from(usual.count));
        heads.fields.retain(|_, value| !value.is_null());
        Heads::read(&heads, &defaults, usual.count * usual.dim)
    }
}

impl Heads {
    pub(crate) fn read(config: &Config, defaults: &Defaults, hidden: usize) -> Result<Self> {
        let count = config.require("num_attention_heads", Config::usize)?;
        let count = config.rows("num_attention_heads", count, hidden)?;
        let default_kv = if config.has("num_key_value_heads") { None } else { defaults.kv_heads };
        let kv = config.usize("num_key_value_heads")?.or(default_kv).unwrap_or(count);
        if kv == 0 || count % kv != 0 {
            return Err(config.error(
                "num_key_value_heads",
                format_args!("is {kv}, which does not divide the {count} attention heads"),
            ));
        }
        let default_dim = if config.has("head_dim") { None } else { defaults.head_dim };
        let dim = config.usize("head_dim")?.or(default_dim).unwrap_or(hidden / count);
        let dim = config.rows("head_dim", dim, hidden * count)?;
        Ok(Self { count, kv, dim })
    }
}

impl Config {
    /// A size of tensors, which must be there.
    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        self.rows(key, self.require(key, Self::usize)?, 1)
    }

    /// A number of rows, each of so many numbers, which the weights must hold.
    fn rows(&self, key: &str, value: usize, columns: usize) -> Result<usize> {
        let value = self.check(key, value, MAX_SIZE)?;
        match value.checked_mul(columns) {
            Some(numbers) if numbers <= self.most => Ok(value),
            _ => {
                let what = format_args!("is {value}, more than the weights on disk hold");
                Err(self.error(key, what))
            }
        }
    }

    fn check(&self, key: &str, value: usize, most: usize) -> Result<usize> {
        match value {
            0 => Err(self.error(key, "must be above 0")),
            value if value > most => {
                Err(self.error(key, format_args!("is {value}; at most {most} is possible")))
            }
            value => Ok(value),
        }
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
    fn non_finite_numbers_are_read_where_python_writes_them() {
        let text =
            r#"{"a": [0.0, Infinity], "b": -Infinity, "c": NaN, "NaN": "\"Infinity", "d": 2}"#;
        let config = config(text);
        assert_eq!(config.usize("d").unwrap(), Some(2));
        assert_eq!(config.str("NaN").unwrap(), Some("\"Infinity"));
        assert_eq!(config.get("a").unwrap()[1]["__float__"], "Infinity");
        for (key, found) in [("b", "-Infinity"), ("c", "NaN")] {
            let error = config.f64(key).unwrap_err().to_string();
            assert_eq!(error, format!("config.json: `{key}` must be a number, found {found}"));
        }
        let error = Config::parse("config.json", b"{\"a\": Infinit}").unwrap_err();
        assert!(error.to_string().contains("is not valid JSON"), "{error}");
    }

    #[test]
    fn sizes_beyond_the_weights_are_refused() {
        let text = r#"{"hidden_size": 64, "num_attention_heads": 4, "head_dim": 500000000,
            "num_hidden_layers": 1, "vocab_size": 1000000000}"#;
        let config = config(text).for_weights(100_000);
        let defaults =
            Defaults { kv_heads: None, head_dim: None, eps: 1e-6, tied: false, max_positions: 8 };
        for (field, error) in [
            ("`vocab_size` is 1000000000", Dims::read(&config, &defaults).unwrap_err()),
            ("`head_dim` is 500000000", Heads::read(&config, &defaults, 64).unwrap_err()),
        ] {
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    #[test]
    fn heads_must_divide() {
        let config =
            config(r#"{"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 3}"#);
        let defaults =
            Defaults { kv_heads: None, head_dim: None, eps: 1e-6, tied: false, max_positions: 8 };
        assert!(
            Heads::read(&config, &defaults, 8).unwrap_err().to_string().contains("does not divide")
        );
    }
}
