//! The types of the fields, and how each is read from JSON and written back.
//!
//! Reading is written out instead of derived, because an error has to name the field and the value
//! found: "`suppress_tokens[3]` must be an integer, found the string "a"".

use serde_json::{Map, Value};

/// A token id as HF's files hold it.
///
/// It is signed because published files use `-1` for "none"; the ids that
/// [`Resolved`](crate::Resolved) hands on are unsigned.
pub type TokenId = i64;

/// One value, or a list of them: `eos_token_id: 2` and `eos_token_id: [2, 7]` both occur.
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

/// When beam search stops: HF's `False`, `True` and `"never"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: when the running beams are unlikely to beat the finished ones.
    Heuristic,
    /// `true`: as soon as `num_beams` sequences are finished.
    WhenFinished,
    /// `"never"`: only when no running beam can beat the finished ones.
    Never,
}

/// HF's `watermarking_config`, of either kind.
///
/// In JSON the kinds are told apart by SynthID's two required fields, `ngram_len` and `keys`.
#[derive(Debug, Clone, PartialEq)]
pub enum Watermarking {
    /// Green lists (Kirchenbauer et al., arXiv 2306.04634).
    GreenList(WatermarkingConfig),
    /// SynthID-Text (Dathathri et al., Nature 634, 2024).
    SynthId(SynthIdTextWatermarkingConfig),
}

/// HF's `WatermarkingConfig`: a bias towards a keyed part of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct WatermarkingConfig {
    /// The green part of the vocabulary, in 0..=1.
    pub greenlist_ratio: f64,
    /// What is added to a green token's score.
    pub bias: f64,
    /// The key.
    pub hashing_key: u64,
    /// `lefthash` or `selfhash` (algorithms 2 and 3 of the paper).
    pub seeding_scheme: String,
    /// How many previous tokens seed the green list.
    pub context_width: usize,
}

impl Default for WatermarkingConfig {
    fn default() -> Self {
        Self {
            greenlist_ratio: 0.25,
            bias: 2.0,
            hashing_key: 15_485_863,
            seeding_scheme: "lefthash".to_owned(),
            context_width: 1,
        }
    }
}

/// HF's `SynthIDTextWatermarkingConfig`: a keyed tournament over the candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthIdTextWatermarkingConfig {
    /// Length of the n-grams that seed the tournament.
    pub ngram_len: usize,
    /// One key for each depth of the tournament.
    pub keys: Vec<i64>,
    /// How many contexts are remembered, so that none is watermarked twice.
    pub context_history_size: usize,
    /// Seed of the sampling table.
    pub sampling_table_seed: u64,
    /// Entries of the sampling table, at most 2^24.
    pub sampling_table_size: usize,
    /// Whether the first `ngram_len - 1` tokens go unmarked.
    pub skip_first_ngram_calls: bool,
    /// Replaces the scores by uniform ones, to test the watermark alone.
    pub debug_mode: bool,
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
    fn new(expected: &'static str, found: &Value) -> Self {
        Self { path: String::new(), expected, found: describe(found) }
    }

    fn under(mut self, parent: &str) -> Self {
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
        Value::Object(_) => "an object".to_owned(),
    }
}

/// A type that a field can have.
pub(crate) trait FieldType: Sized {
    fn read(value: &Value) -> Result<Self, Mismatch>;
    fn write(&self) -> Value;
}

impl FieldType for bool {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_bool().ok_or_else(|| Mismatch::new("true or false", value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
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
}

impl FieldType for u64 {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_u64().ok_or_else(|| Mismatch::new("an integer of 0 or more", value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }
}

impl FieldType for i64 {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_i64().ok_or_else(|| Mismatch::new("an integer", value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }
}

impl FieldType for f64 {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_f64().ok_or_else(|| Mismatch::new("a number", value))
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }
}

impl FieldType for String {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_str().map(str::to_owned).ok_or_else(|| Mismatch::new("a string", value))
    }

    fn write(&self) -> Value {
        Value::from(self.as_str())
    }
}

impl FieldType for Map<String, Value> {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        value.as_object().cloned().ok_or_else(|| Mismatch::new("an object", value))
    }

    fn write(&self) -> Value {
        Value::from(self.clone())
    }
}

impl FieldType for Value {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        Ok(value.clone())
    }

    fn write(&self) -> Value {
        self.clone()
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
}

impl FieldType for Watermarking {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        let object = value.as_object().ok_or_else(|| Mismatch::new("an object", value))?;
        if object.contains_key("ngram_len") || object.contains_key("keys") {
            SynthIdTextWatermarkingConfig::read(object).map(Self::SynthId)
        } else {
            WatermarkingConfig::read(object).map(Self::GreenList)
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::GreenList(it) => it.write(),
            Self::SynthId(it) => it.write(),
        }
    }
}

impl WatermarkingConfig {
    fn read(object: &Map<String, Value>) -> Result<Self, Mismatch> {
        let mut it = Self::default();
        for (key, value) in object {
            match key.as_str() {
                "greenlist_ratio" => it.greenlist_ratio = member(key, value)?,
                "bias" => it.bias = member(key, value)?,
                "hashing_key" => it.hashing_key = member(key, value)?,
                "seeding_scheme" => it.seeding_scheme = member(key, value)?,
                "context_width" => it.context_width = member(key, value)?,
                _ => return Err(no_such_member(key, value)),
            }
        }
        Ok(it)
    }

    fn write(&self) -> Value {
        serde_json::json!({
            "greenlist_ratio": self.greenlist_ratio,
            "bias": self.bias,
            "hashing_key": self.hashing_key,
            "seeding_scheme": self.seeding_scheme,
            "context_width": self.context_width,
        })
    }
}

impl SynthIdTextWatermarkingConfig {
    /// HF's defaults beside the two fields that have none.
    pub fn new(ngram_len: usize, keys: Vec<i64>) -> Self {
        Self {
            ngram_len,
            keys,
            context_history_size: 1024,
            sampling_table_seed: 0,
            sampling_table_size: 1 << 16,
            skip_first_ngram_calls: false,
            debug_mode: false,
        }
    }

    fn read(object: &Map<String, Value>) -> Result<Self, Mismatch> {
        let required = |key| member(key, object.get(key).unwrap_or(&Value::Null));
        let keys = object.get("keys").unwrap_or(&Value::Null);
        let mut it = Self::new(required("ngram_len")?, member("keys", keys)?);
        for (key, value) in object {
            match key.as_str() {
                "ngram_len" | "keys" => {}
                "context_history_size" => it.context_history_size = member(key, value)?,
                "sampling_table_seed" => it.sampling_table_seed = member(key, value)?,
                "sampling_table_size" => it.sampling_table_size = member(key, value)?,
                "skip_first_ngram_calls" => it.skip_first_ngram_calls = member(key, value)?,
                "debug_mode" => it.debug_mode = member(key, value)?,
                _ => return Err(no_such_member(key, value)),
            }
        }
        Ok(it)
    }

    fn write(&self) -> Value {
        serde_json::json!({
            "ngram_len": self.ngram_len,
            "keys": self.keys,
            "context_history_size": self.context_history_size,
            "sampling_table_seed": self.sampling_table_seed,
            "sampling_table_size": self.sampling_table_size,
            "skip_first_ngram_calls": self.skip_first_ngram_calls,
            "debug_mode": self.debug_mode,
        })
    }
}

fn member<T: FieldType>(key: &str, value: &Value) -> Result<T, Mismatch> {
    T::read(value).map_err(|it| it.under(&format!(".{key}")))
}

fn no_such_member(key: &str, value: &Value) -> Mismatch {
    Mismatch::new("left out, as no such key is known", value).under(&format!(".{key}"))
}
