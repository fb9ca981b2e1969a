//! The `watermarking_config` field: one of two kinds, each with its own fields.
//!
//! HF writes both kinds to JSON but reads only the first back, because there the kind is a Python
//! class. Here the fields decide.

use mlxgk_logits_processors::{SeedingScheme, SynthIdTextWatermarkingConfig, WatermarkingConfig};
use serde_json::{Map, Value, json};

use crate::value::{FieldType, Mismatch};
use crate::{Error, ErrorKind, Result};

/// HF's `watermarking_config`, of either kind.
///
/// In JSON the kinds are distinguished by the two fields that SynthID requires, `ngram_len` and
/// `keys`.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, Watermarking};
/// use serde_json::json;
///
/// let read = |value| GenerationConfig::from_json(&json!({"watermarking_config": value}));
/// let green = read(json!({"bias": 2.5}))?.watermarking_config;
/// assert!(matches!(green, Some(Watermarking::GreenList(it)) if it.bias == 2.5));
/// let synth_id = read(json!({"ngram_len": 5, "keys": [654, 400]}))?.watermarking_config;
/// assert!(matches!(synth_id, Some(Watermarking::SynthId(it)) if it.ngram_len == 5));
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Watermarking {
    /// Green lists (Kirchenbauer et al., arXiv 2306.04634).
    GreenList(WatermarkingConfig),
    /// SynthID-Text (Dathathri et al., Nature 634, 2024).
    SynthId(SynthIdTextWatermarkingConfig),
}

impl Watermarking {
    /// HF's checks, which it makes as soon as a config is built.
    pub(crate) fn check(&self) -> Result<()> {
        let what = match self {
            Self::GreenList(it) if !(0.0..=1.0).contains(&it.greenlist_ratio) => {
                format!("`greenlist_ratio` must be between 0 and 1, but is {}", it.greenlist_ratio)
            }
            Self::GreenList(it) if it.context_width == 0 => {
                "`context_width` must be at least 1, but is 0".to_owned()
            }
            Self::SynthId(it) if it.sampling_table_size > 1 << 24 => {
                let size = it.sampling_table_size;
                format!("`sampling_table_size` must be at most 2^24, but is {size}")
            }
            _ => return Ok(()),
        };
        let message = format!("`watermarking_config`: {what}");
        Err(Error::of(ErrorKind::Value, "watermarking_config", message))
    }
}

impl FieldType for Watermarking {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        let object = value.as_object().ok_or_else(|| Mismatch::new("an object", value))?;
        if object.contains_key("ngram_len") || object.contains_key("keys") {
            synth_id(object).map(Self::SynthId)
        } else {
            green_list(object).map(Self::GreenList)
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::GreenList(it) => json!({
                "greenlist_ratio": it.greenlist_ratio,
                "bias": it.bias,
                "hashing_key": it.hashing_key,
                "seeding_scheme": it.seeding_scheme.write(),
                "context_width": it.context_width,
            }),
            Self::SynthId(it) => json!({
                "ngram_len": it.ngram_len,
                "keys": it.keys,
                "context_history_size": it.context_history_size,
                "sampling_table_seed": it.sampling_table_seed,
                "sampling_table_size": it.sampling_table_size,
                "skip_first_ngram_calls": it.skip_first_ngram_calls,
                "debug_mode": it.debug_mode,
            }),
        }
    }

    fn type_name() -> String {
        "object".to_owned()
    }
}

impl FieldType for SeedingScheme {
    fn read(value: &Value) -> Result<Self, Mismatch> {
        let scheme = value.as_str().and_then(|it| Self::from_name(it).ok());
        scheme.ok_or_else(|| Mismatch::new("`lefthash` or `selfhash`", value))
    }

    fn write(&self) -> Value {
        match self {
            Self::LeftHash => Value::from("lefthash"),
            Self::SelfHash => Value::from("selfhash"),
        }
    }

    fn type_name() -> String {
        "\"lefthash\" | \"selfhash\"".to_owned()
    }
}

fn green_list(object: &Map<String, Value>) -> Result<WatermarkingConfig, Mismatch> {
    let mut it = WatermarkingConfig::default();
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

fn synth_id(object: &Map<String, Value>) -> Result<SynthIdTextWatermarkingConfig, Mismatch> {
    let required = |key| object.get(key).unwrap_or(&Value::Null);
    let mut it = SynthIdTextWatermarkingConfig::new(
        member("ngram_len", required("ngram_len"))?,
        member("keys", required("keys"))?,
    );
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

fn member<T: FieldType>(key: &str, value: &Value) -> Result<T, Mismatch> {
    T::read(value).map_err(|it| it.under(&format!(".{key}")))
}

fn no_such_member(key: &str, value: &Value) -> Mismatch {
    Mismatch::new("left out, as no such key is known", value).under(&format!(".{key}"))
}
