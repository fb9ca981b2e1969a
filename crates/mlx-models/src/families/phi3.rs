//! Phi-3 and Phi-4 (HF `Phi3ForCausalLM`): fused projections, partly rotated heads, longrope.

use crate::{
    Decoder, Result,
    activation::Activation,
    block::{AttentionOptions, FeedForward, GatedMlp, SelfAttention, TransformerBlock},
    config::{Config, Defaults, Dims},
    decoder::DecoderOptions,
    families::{assemble, layer_name, spec, window},
    norm::NormWeight,
    rope::{Rope, RopeParameters},
    weights::Weights,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-5, tied: false, max_positions: 4096 };

/// HF's class default, which applies even where the dictionary has its own.
const ORIGINAL_CONTEXT: usize = 4096;

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let mut parameters = RopeParameters::read(config, dims.max_positions)?;
    let original = config.usize("original_max_position_embeddings")?.unwrap_or(ORIGINAL_CONTEXT);
    parameters.original = original;
    if matches!(parameters.kind.as_str(), "su" | "yarn") {
        // Early checkpoints call longrope by these names.
        parameters.kind = "longrope".to_owned();
    }
    let rotary = (dims.head_dim as f64 * parameters.partial_factor(config)?) as usize;
    let rope = Rope::new(&parameters, dims.head_dim, rotary)?;
    let spec = spec(window(config, None)?);
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let stored = NormWeight::Plain;
    let options = DecoderOptions {
        original_context: rope.is_long().then_some(original),
        ..DecoderOptions::default()
    };
    assemble("phi3", dims.clone(), weights, stored, options, |weights, layer| {
        let at = layer_name(layer);
        let options = AttentionOptions { fused: true, ..AttentionOptions::new(rope.clone(), spec) };
        let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, options)?;
        let mlp = GatedMlp::load_fused(weights, &format!("{at}.mlp"), &dims, activation)?;
        let mlp = FeedForward::Gated(mlp);
        let block = TransformerBlock::load(weights, &at, &dims, stored, attention, mlp)?;
        Ok((spec, Box::new(block)))
    })
}
