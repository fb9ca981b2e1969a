//! Llama 1 to 3 (HF `LlamaForCausalLM`).

use crate::{
    Decoder, Result,
    activation::Activation,
    block::{AttentionOptions, FeedForward, GatedMlp, SelfAttention, TransformerBlock},
    config::{Config, Defaults, Dims},
    decoder::DecoderOptions,
    families::{assemble, layer_name, spec},
    norm::NormWeight,
    rope::{Rope, RopeParameters},
    weights::Weights,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-6, tied: false, max_positions: 2048 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let rope = Rope::new(&parameters, dims.head_dim, dims.head_dim)?;
    let attention_bias = config.bool("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let stored = NormWeight::Plain;
    assemble("llama", dims.clone(), weights, stored, DecoderOptions::default(), |weights, layer| {
        let (at, spec) = (layer_name(layer), spec(None));
        let options = AttentionOptions {
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            ..AttentionOptions::new(rope.clone(), spec)
        };
        let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, options)?;
        let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), &dims, activation, mlp_bias)?;
        let mlp = FeedForward::Gated(mlp);
        let block = TransformerBlock::load(weights, &at, &dims, stored, attention, mlp)?;
        Ok((spec, Box::new(block)))
    })
}
