//! Gemma 2 (HF `Gemma2ForCausalLM`): soft-capped scores and logits, alternating windows, four norms.

use super::{prelude::*, sliding_layers, soft_cap, window};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(4), head_dim: Some(256), eps: 1e-6, tied: true, max_positions: 8192 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mlp = mlp(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let window = window(config, Some(4096))?;
    let sliding = sliding_layers(config, &dims, |layer| layer % 2 == 0)?;
    let scale = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    let score_cap = soft_cap(config, "attn_logit_softcapping", Some(50.0))?;
    let form = NormWeight::Offset;
    let options = DecoderOptions {
        embedding_scale: Some((dims.hidden as f32).sqrt()),
        logit_cap: soft_cap(config, "final_logit_softcapping", Some(30.0))?,
        ..DecoderOptions::default()
    };
    assemble("gemma2", dims, weights, form, options, |weights, at, layer| {
        let spec = spec(window.filter(|_| sliding[layer]));
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            scale: Some(scale),
            soft_cap: score_cap,
            ..AttentionOptions::new(heads, rope.clone(), spec)
        };
        dense_block(weights, at, &dims, (Norms::Around, form), attention, mlp)
    })
}
