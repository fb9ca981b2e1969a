//! Multimodal models around a text model: their `text_config` is a config of its own.

use serde_json::Value;

use super::prelude::*;

/// The language model of Mistral 3; [`Weights`] has left the rest out.
pub(super) fn build_mistral3(config: &Config, weights: Weights) -> Result<Decoder> {
    let text = config.require("text_config", Config::object)?;
    let text = text.or_value("model_type", Value::from("mistral"));
    let tied = config.bool("tie_word_embeddings")?.unwrap_or(true);
    super::build(&text.or_value("tie_word_embeddings", Value::from(tied)), weights)
}
