//! Fields of a config that change what a model computes, and that its family did not ask for.
//!
//! A config holds much that a graph does without (dropout, initialisation, training), and programs add
//! fields of their own, so a field that no family knows is not an error. But some are known to change the
//! numbers and leave no trace in the tensors: a cap, a factor, another kind of positions. Where one is set to
//! something that does anything, and the family did not read it, the model would be another one.

use serde_json::Value;

use crate::{Result, config::Config};

/// Caps on scores or logits, and other numbers that 0 leaves without effect.
const CAPS: [&str; 8] = [
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logits_soft_cap",
    "router_logit_softcapping",
    "moe_router_logit_softcapping",
    "clip_qkv",
    "query_pre_attn_scalar",
    "attention_chunk_size",
];

/// Factors, which 1 leaves without effect.
const FACTORS: [&str; 14] = [
    "attention_in_multiplier",
    "attention_multiplier",
    "attention_out_multiplier",
    "embedding_multiplier",
    "key_multiplier",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
    "qk_scale_factor",
    "residual_multiplier",
    "scale_emb",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
];

/// What is off unless it is `true`, or named.
const SWITCHES: [&str; 6] = [
    "alibi",
    "attn_temperature_tuning",
    "moe_apply_router_weight_on_input",
    "use_alibi",
    "use_bidirectional_attention",
    "use_parallel_residual",
];

/// Refuses such a field of the config, or of the language model's in it.
pub(crate) fn check(config: &Config) -> Result<()> {
    if let Some(text) = config.object("text_config")? {
        check(&text)?;
    }
    for (key, value) in config.unread() {
        let number = value.as_f64();
        let is_idle = match key.as_str() {
            key if CAPS.contains(&key) => value.is_null() || number == Some(0.0),
            key if FACTORS.contains(&key) => value.is_null() || number == Some(1.0),
            key if SWITCHES.contains(&key) => matches!(value, Value::Null | Value::Bool(false)),
            "is_causal" => matches!(value, Value::Null | Value::Bool(true)),
            "position_embedding_type" => value.is_null() || value.as_str() == Some("rope"),
            _ => true,
        };
        if !is_idle {
            let what = format_args!("is {value}, which this architecture does not know");
            return Err(config.error(&key, what));
        }
    }
    Ok(())
}
