//! The types of the fields, and how each is read from JSON and written back.
//!
//! Reading is written out instead of derived, because an error has to name the field and the value
//! found: "`suppress_tokens[3]` must be an integer, found the string "a"".

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A token id as HF's files hold it.
///
/// It is signed because published files use `-1` for "none"; the ids that
/// [`Resolved`](crate::Resolved) hands on are unsigned.
pub type TokenId = i64;

/// One value, or a list of them: `eos_token_id: 2` and `eos_token_id: [2, 7]` both occur.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, OneOrMany};
/// use serde_json::json;
///
/// let eos = |value| GenerationConfig::from_json(&json!({"eos_token_id": value}));
/// assert_eq!(eos(json!(2))?.eos_token_id, Some(OneOrMany::One(2)));
/// assert_eq!(eos(json!([2, 7]))?.eos_token_id.unwrap().as_slice(), [2, 7]);
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OneOrMany<T> {
    /// A bare value.
    One(T),
    /// A list, possibly of one or none.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values, however they were written.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

impl<T> From<T> for OneOrMany<T> {
    fn from(value: T) -> Self {
        Self::One(value)
    }
}

impl<T> From<Vec<T>> for OneOrMany<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Many(values)
    }
}

/// A word that a sequence has to contain.
///
/// ```
/// use mlxgk_generation_config::{ForcedWord, GenerationConfig};
/// use serde_json::json;
///
/// let fields = json!({"num_beams": 4, "force_words_ids": [[5, 6], [[8], [9, 10]]]});
/// let words = GenerationConfig::from_json(&fields)?.force_words_ids.unwrap();
/// assert_eq!(words[0], ForcedWord::Phrase(vec![5, 6]));
/// assert_eq!(words[1].alternatives(), [vec![8], vec![9, 10]]);
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForcedWord {
    /// These tokens, one after the other.
    Phrase(Vec<TokenId>),
    /// One of these phrases, such as the forms of a verb.
    AnyOf(Vec<Vec<TokenId>>),
}

impl ForcedWord {
    /// The phrases of which one is enough.
    pub fn alternatives(&self) -> &[Vec<TokenId>] {
        match self {
            Self::Phrase(phrase) => std::slice::from_ref(phrase),
            Self::AnyOf(phrases) => phrases,
        }
    }
}

/// The layers that DoLa contrasts with the last.
///
/// ```
/// use mlxgk_generation_config::{DolaLayers, GenerationConfig};
/// use serde_json::json;
///
/// let layers = |value| GenerationConfig::from_json(&json!({"dola_layers": value}));
/// assert_eq!(layers(json!("low"))?.dola_layers, Some(DolaLayers::Low));
/// assert_eq!(layers(json!([2, 4]))?.dola_layers, Some(DolaLayers::Listed(vec![2, 4])));
/// assert!(layers(json!("middle")).is_err());
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DolaLayers {
    /// Every other layer of the lower half.
    Low,
    /// Every other layer of the upper half.
    High,
    /// These; 0 is the embedding.
    Listed(Vec<usize>),
}

/// When beam search stops: HF's `False`, `True` and `"never"`.
///
/// ```
/// use mlxgk_generation_config::{EarlyStopping, GenerationConfig};
/// use serde_json::json;
///
/// let config = GenerationConfig::from_json(&json!({"num_beams": 4, "early_stopping": true}))?;
/// assert_eq!(config.early_stopping, Some(EarlyStopping::WhenFinished));
/// let config = GenerationConfig { early_stopping: Some(EarlyStopping::Never), ..config };
/// assert_eq!(config.to_json()["early_stopping"], "never");
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: when the running beams are unlikely to beat the finished ones.
    Heuristic,
    /// `true`: as soon as `num_beams` sequences are finished.
    WhenFinished,
    /// `"never"`: only when no running beam can beat the finished ones.
    Never,
}

/// A value of the wrong type: where it is, what belongs there, what is there.
#[derive(Debug)]
pub(crate) struct Mismatch {
    /// What follows the field's name: `[3]`, `.bias`.
    pub(crate) path: String,
    pub(crate) expected: &'static str,
    pub(crate) found: String,
}

impl Mismatch {
    pub(crate) fn new(expected: &'static str, found: &Value) -> Self {
        Self { path: String::new(), expected, found: describe(found) }
    }

    /// The same, seen from the list or object that holds the value.
    pub(crate) fn under(mut self, parent: &str) -> Self {
        self.path.insert_str(0, parent);
        self
    }
}

/// A value as a sentence names it.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(it) => it.to_string(),
        Value::Number(it) => format!("the number {it}"),
        Value::String(it) => match it.char_indices().nth(40) {
            Some((end, _)) => format!("the string {:?}...", &it[..end]),
            None => format!("the string {it:?}"),
        },
        Value::Array(it) => format!("a list of length {}", it.len()),
        Value::Object(it) => match it.get("__float__").and_then(Value::as_str) {
            Some(name) => format!("the number {name}"),
            None => "an object".to_owned(),
        },
    }
}

/// A type that a field can have.
pub(crate) trait FieldType: Sized {
    fn read(value: &Value) -> Result<Self, Mismatch>;
    fn write(&self) -> Value;
    /// The type in JSON, as [`GenerationConfig::type_of`](crate::GenerationConfig::type_of) spells it.
    fn type_name() -> String;
}

impl FieldType for bool {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_bool().ok_or_else(|| Mismatch::new("true or false", value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }

    fn type_name() -> String {
        "boolean".to_owned()
    }
}

impl FieldType for usize {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        let number = value.as_u64().and_then(|it| Self::try_from(it).ok());
        let expected = if value.is_number() { "an integer of 0 or more" } else { "an integer" };
        number.ok_or_else(|| Mismatch::new(expected, value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }

    fn type_name() -> String {
        "integer".to_owned()
    }
}

impl FieldType for u64 {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_u64().ok_or_else(|| Mismatch::new("an integer of 0 or more", value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }

    fn type_name() -> String {
        "integer".to_owned()
    }
}

impl FieldType for i64 {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_i64().ok_or_else(|| Mismatch::new("an integer", value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }

    fn type_name() -> String {
        "integer".to_owned()
    }
}

impl FieldType for f64 {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_f64().ok_or_else(|| Mismatch::new("a number", value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }

    fn type_name() -> String {
        "number".to_owned()
    }
}

impl FieldType for String {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_str().map(str::to_owned).ok_or_else(|| Mismatch::new("a string", value))
    }

    fn write(&self) -> Value {
        Value::from(self.as_str())
    }

    fn type_name() -> String {
        "string".to_owned()
    }
}

impl FieldType for Map<String, Value> {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_object().cloned().ok_or_else(|| Mismatch::new("an object", value))
    }

    fn write(&self) -> Value {
        Value::from(self.clone())
    }

    fn type_name() -> String {
        "object".to_owned()
    }
}

/// Numbers by token; JSON's keys are strings, so the ids are written as such.
impl FieldType for BTreeMap<TokenId, f64> {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        const EXPECTED: &str = "an object with token ids as keys";
        let entries = value.as_object().ok_or_else(|| Mismatch::new(EXPECTED, value))?;
        let read = |(key, value): (&String, &Value)| {
            let id =
                key.parse().map_err(|_| Mismatch::new(EXPECTED, &Value::from(key.as_str())))?;
            let number = f64::read(value).map_err(|it| it.under(&format!("[\"{key}\"]")))?;
            Ok((id, number))
        };
        entries.iter().map(read).collect()
    }

    fn write(&self) -> Value {
        self.iter().map(|(id, number)| (id.to_string(), Value::from(*number))).collect()
    }

    fn type_name() -> String {
        "{token: number}".to_owned()
    }
}

impl FieldType for Value {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        Ok(value.clone())
    }

    fn write(&self) -> Value {
        self.clone()
    }

    fn type_name() -> String {
        "any".to_owned()
    }
}

impl<T: FieldType> FieldType for Vec<T> {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        let items = value.as_array().ok_or_else(|| Mismatch::new("a list", value))?;
        let read = |(at, item)| T::read(item).map_err(|it| it.under(&format!("[{at}]")));
        items.iter().enumerate().map(read).collect()
    }

    fn write(&self) -> Value {
        self.iter().map(FieldType::write).collect()
    }

    fn type_name() -> String {
        format!("[{}]", T::type_name())
    }
}

impl<A: FieldType, B: FieldType> FieldType for (A, B) {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        match value.as_array().map(Vec::as_slice) {
            Some([a, b]) => Ok((
                A::read(a).map_err(|it| it.under("[0]"))?,
                B::read(b).map_err(|it| it.under("[1]"))?,
            )),
            _ => Err(Mismatch::new("a list of two", value)),
        }
    }

    fn write(&self) -> Value {
        Value::from(vec![self.0.write(), self.1.write()])
    }

    fn type_name() -> String {
        format!("[{}, {}]", A::type_name(), B::type_name())
    }
}

impl<T: FieldType> FieldType for OneOrMany<T> {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        if value.is_array() {
            Vec::read(value).map(Self::Many)
        } else {
            T::read(value).map(Self::One)
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::One(value) => value.write(),
            Self::Many(values) => values.write(),
        }
    }

    fn type_name() -> String {
        format!("{} | [{}]", T::type_name(), T::type_name())
    }
}

impl FieldType for DolaLayers {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        match value {
            Value::String(it) if it == "low" => Ok(Self::Low),
            Value::String(it) if it == "high" => Ok(Self::High),
            Value::Array(_) => Vec::read(value).map(Self::Listed),
            _ => Err(Mismatch::new("\"low\", \"high\" or a list of layers", value)),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Low => Value::from("low"),
            Self::High => Value::from("high"),
            Self::Listed(layers) => layers.write(),
        }
    }

    fn type_name() -> String {
        "\"low\" | \"high\" | [integer]".to_owned()
    }
}

impl FieldType for ForcedWord {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        match value.as_array().map(|it| it.first()) {
            Some(Some(first)) if first.is_array() => Vec::read(value).map(Self::AnyOf),
            Some(_) => Vec::read(value).map(Self::Phrase),
            None => Err(Mismatch::new("a list of token ids, or of such lists", value)),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Phrase(phrase) => phrase.write(),
            Self::AnyOf(phrases) => phrases.write(),
        }
    }

    fn type_name() -> String {
        "[integer] | [[integer]]".to_owned()
    }
}

impl FieldType for EarlyStopping {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        match value {
            Value::Bool(false) => Ok(Self::Heuristic),
            Value::Bool(true) => Ok(Self::WhenFinished),
            Value::String(it) if it == "never" => Ok(Self::Never),
            _ => Err(Mismatch::new("true, false or \"never\"", value)),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Heuristic => Value::from(false),
            Self::WhenFinished => Value::from(true),
            Self::Never => Value::from("never"),
        }
    }

    fn type_name() -> String {
        "boolean | \"never\"".to_owned()
    }
}
