//! Gemma 1 (HF `GemmaForCausalLM`): scaled embeddings, norms stored as `w - 1`, a tied head.

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

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(16),
    head_dim: Some(256),
    eps: 1e-6,
    tied: true,
    max_positions: 8192,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let rope = Rope::new(&parameters, dims.head_dim, dims.head_dim)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    // The first checkpoints say "gelu" and were trained with its tanh form; HF reads both as that.
    let activation = match Activation::read(config, "hidden_act", "gelu_pytorch_tanh")? {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    let stored = NormWeight::Offset;
    let scale = (dims.hidden as f32).sqrt();
    let options = DecoderOptions { embedding_scale: Some(scale), ..DecoderOptions::default() };
    assemble("gemma", dims.clone(), weights, stored, options, |weights, layer| {
        let (at, spec) = (layer_name(layer), spec(None));
        let options = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionOptions::new(rope.clone(), spec)
        };
        let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, options)?;
        let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), &dims, activation, false)?;
        let mlp = FeedForward::Gated(mlp);
        let block = TransformerBlock::load(weights, &at, &dims, stored, attention, mlp)?;
        Ok((spec, Box::new(block)))
    })
}
