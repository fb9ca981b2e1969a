//! Gemma 2 (HF `Gemma2ForCausalLM`): soft-capped scores and logits, alternating windows, four norms.

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
    Defaults { kv_heads: Some(4), head_dim: Some(256), eps: 1e-6, tied: true, max_positions: 8192 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let rope = Rope::new(&parameters, dims.head_dim, dims.head_dim)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let activation = Activation::read(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let window = window(config, Some(4096))?;
    let sliding = sliding_layers(config, &dims, |layer| layer % 2 == 0)?;
    let scale = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    let score_cap = soft_cap(config, "attn_logit_softcapping", Some(50.0))?;
    let options = DecoderOptions {
        embedding_scale: Some((dims.hidden as f32).sqrt()),
        logit_cap: soft_cap(config, "final_logit_softcapping", Some(30.0))?,
        ..DecoderOptions::default()
    };
    assemble("gemma2", dims.clone(), weights, NormWeight::Offset, options, |weights, layer| {
        let (at, spec) = (layer_name(layer), spec(window.filter(|_| sliding[layer])));
        let options = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            scale: Some(scale),
            soft_cap: score_cap,
            ..AttentionOptions::new(rope.clone(), spec)
        };
        let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, options)?;
        let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), &dims, activation, false)?;
        let mlp = FeedForward::Gated(mlp);
        let block = TransformerBlock::load_sandwich(weights, &at, &dims, attention, mlp)?;
        Ok((spec, Box::new(block)))
    })
}

/// A cap: absent is the class's default, `null` is none.
pub(super) fn soft_cap(config: &Config, key: &str, default: Option<f32>) -> Result<Option<f32>> {
    if config.has(key) { config.f32(key) } else { Ok(default) }
}
