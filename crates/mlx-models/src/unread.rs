//! Fields of a config that change what a model computes, and that its family did not ask for.
//!
//! A config holds much that a graph does without (dropout, initialisation, training), and programs add
//! fields of their own, so a field that no family knows is not an error. But some change the numbers and
//! leave no trace in the tensors: a cap, a factor, another kind of positions, settings of single layers. They
//! are known by name, or by what names of their kind have in common. Where one is set to something that does
//! anything, and the family did not read it, the model would be another one.

use serde_json::Value;

use crate::{Result, config::Config};

/// Numbers that 0 leaves without effect.
const LIMITS: [&str; 3] = ["clip_qkv", "query_pre_attn_scalar", "attention_chunk_size"];

/// Parts of the names of caps on scores or logits, which 0 leaves without effect, too.
const CAPS: [&str; 2] = ["softcap", "soft_cap"];

/// Factors, which 1 leaves without effect.
const FACTORS: [&str; 5] =
    ["logit_scale", "logits_scaling", "qk_scale_factor", "rotary_pct", "scale_emb"];

/// What is off unless it is `true`, or named.
const SWITCHES: [&str; 3] =
    ["attn_temperature_tuning", "moe_apply_router_weight_on_input", "use_parallel_residual"];

/// Parts of the names of further ones.
const KINDS_OF_SWITCHES: [&str; 2] = ["alibi", "bidirectional"];

/// What the key of a field says of it.
enum Effect {
    /// None that is known of.
    Unknown,
    /// None at this number.
    Number(f64),
    /// None at this answer.
    Switch(bool),
    /// None where it holds nothing.
    Entries,
    /// None at this name.
    Name(&'static str),
}

impl Effect {
    fn of(key: &str) -> Self {
        let has = |parts: &[&str]| parts.iter().any(|it| key.contains(it));
        // The width of a feed-forward layer shows in its tensors.
        let is_factor = key.ends_with("_multiplier") && !key.contains("ff");
        match key {
            _ if LIMITS.contains(&key) || has(&CAPS) => Self::Number(0.0),
            _ if FACTORS.contains(&key) || is_factor => Self::Number(1.0),
            _ if SWITCHES.contains(&key) || has(&KINDS_OF_SWITCHES) => Self::Switch(false),
            "is_causal" | "use_parallel_block" => Self::Switch(true),
            "per_layer_config" => Self::Entries,
            "position_embedding_type" => Self::Name("rope"),
            _ => Self::Unknown,
        }
    }

    fn is_idle(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Unknown, _) | (_, Value::Null) => true,
            (Self::Number(idle), _) => value.as_f64() == Some(*idle),
            (Self::Switch(idle), _) => value.as_bool() == Some(*idle),
            (Self::Entries, _) => value.as_object().is_some_and(|it| it.is_empty()),
            (Self::Name(idle), _) => value.as_str() == Some(idle),
        }
    }
}

/// Parts of a config that describe something else than the language model, by parts of their names.
const OTHER_PARTS: [&str; 5] = ["vision", "audio", "image", "video", "speech"];

/// Refuses such a field of the config, or of an object in it that belongs to the language model.
pub(crate) fn check(config: &Config) -> Result<()> {
    let mut text = None;
    for (key, part) in config.objects() {
        match key.as_str() {
            "text_config" => text = Some(part.clone()),
            // A model of its own.
            _ if part.entries().any(|(key, _)| key == "model_type") => continue,
            _ if OTHER_PARTS.iter().any(|it| key.contains(it)) => continue,
            _ => {}
        }
        check(&part)?;
    }
    // A wrapper may say once more what its language model has.
    let is_repeated = |key: &str, value: &Value| {
        let mut fields = text.iter().flat_map(Config::entries);
        fields.any(|it| it == (&key.to_owned(), value))
    };
    for (key, value) in config.entries().filter(|(key, _)| !config.was_read(key)) {
        let is_idle = match key.as_str() {
            "layer_types" => are_usual_layers(config, value),
            key => Effect::of(key).is_idle(value),
        };
        if !is_idle && !is_repeated(key, value) {
            let what = format_args!("is {value}, which this architecture does not know");
            return Err(config.error(key, what));
        }
    }
    Ok(())
}

/// Whether layers are of the kind that all layers have where a family knows no other: all of them see
/// everything, or all of them a window that the family read.
fn are_usual_layers(config: &Config, value: &Value) -> bool {
    let are_all = |kind: &str| match value.as_array() {
        Some(kinds) => kinds.iter().all(|it| it.as_str() == Some(kind)),
        None => value.is_null(),
    };
    are_all("full_attention") || (are_all("sliding_attention") && config.was_read("sliding_window"))
}
