//! Qwen3 (HF `Qwen3ForCausalLM`): norms on each head's queries and keys.

use crate::{
    Decoder, Result,
    activation::Activation,
    block::{AttentionOptions, FeedForward, GatedMlp, SelfAttention, TransformerBlock},
    config::{Config, Defaults, Dims},
    decoder::DecoderOptions,
    families::{assemble, layer_name, qwen2::windows, spec},
    norm::NormWeight,
    rope::{Rope, RopeParameters},
    weights::Weights,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(32),
    head_dim: Some(128),
    eps: 1e-6,
    tied: false,
    max_positions: 32_768,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let rope = Rope::new(&parameters, dims.head_dim, dims.head_dim)?;
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let (window, sliding) = windows(config, &dims)?;
    let stored = NormWeight::Plain;
    assemble("qwen3", dims.clone(), weights, stored, DecoderOptions::default(), |weights, layer| {
        let (at, spec) = (layer_name(layer), spec(window.filter(|_| sliding[layer])));
        let options = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(stored),
            ..AttentionOptions::new(rope.clone(), spec)
        };
        let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, options)?;
        let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), &dims, activation, false)?;
        let mlp = FeedForward::Gated(mlp);
        let block = TransformerBlock::load(weights, &at, &dims, stored, attention, mlp)?;
        Ok((spec, Box::new(block)))
    })
}
