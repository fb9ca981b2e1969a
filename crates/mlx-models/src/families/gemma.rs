//! Gemma 1 (HF `GemmaForCausalLM`): scaled embeddings, norms stored as `w - 1`, a tied head.

use super::prelude::*;
use crate::activation::Activation;

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(16),
    head_dim: Some(256),
    eps: 1e-6,
    tied: true,
    max_positions: 8192,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mut mlp = mlp(config, "hidden_act", "gelu_pytorch_tanh")?;
    // The first checkpoints say "gelu" and were trained with its tanh form; HF reads both as that.
    if mlp.activation == Activation::Gelu {
        mlp.activation = Activation::GeluTanh;
    }
    let form = NormWeight::Offset;
    let scale = (dims.hidden as f32).sqrt();
    let options = DecoderOptions { embedding_scale: Some(scale), ..DecoderOptions::default() };
    assemble("gemma", dims, weights, form, options, |weights, at, _| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}
