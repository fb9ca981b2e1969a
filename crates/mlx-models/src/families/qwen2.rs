//! Qwen2 and Qwen2.5 (HF `Qwen2ForCausalLM`): biases on queries, keys and values.

use crate::{
    Decoder, Result,
    activation::Activation,
    block::{AttentionOptions, FeedForward, GatedMlp, SelfAttention, TransformerBlock},
    config::{Config, Defaults, Dims},
    decoder::DecoderOptions,
    families::{assemble, layer_name, sliding_layers, spec, window},
    norm::NormWeight,
    rope::{Rope, RopeParameters},
    weights::Weights,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(32), head_dim: None, eps: 1e-6, tied: false, max_positions: 32_768 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let rope = Rope::new(&parameters, dims.head_dim, dims.head_dim)?;
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let (window, sliding) = windows(config, &dims)?;
    let stored = NormWeight::Plain;
    assemble("qwen2", dims.clone(), weights, stored, DecoderOptions::default(), |weights, layer| {
        let (at, spec) = (layer_name(layer), spec(window.filter(|_| sliding[layer])));
        let options =
            AttentionOptions { qkv_bias: true, ..AttentionOptions::new(rope.clone(), spec) };
        let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, options)?;
        let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), &dims, activation, false)?;
        let mlp = FeedForward::Gated(mlp);
        let block = TransformerBlock::load(weights, &at, &dims, stored, attention, mlp)?;
        Ok((spec, Box::new(block)))
    })
}

/// The window, if `use_sliding_window` is on, and which layers have it: those from
/// `max_window_layers` on, unless `layer_types` says otherwise.
pub(super) fn windows(config: &Config, dims: &Dims) -> Result<(Option<usize>, Vec<bool>)> {
    if !config.bool("use_sliding_window")?.unwrap_or(false) {
        return Ok((None, vec![false; dims.layers]));
    }
    let first = config.usize("max_window_layers")?.unwrap_or(28);
    Ok((window(config, Some(4096))?, sliding_layers(config, dims, |layer| layer >= first)?))
}
