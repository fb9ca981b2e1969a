//! OLMo 2 (HF `Olmo2ForCausalLM`): norms after each half, and over all heads' queries and keys.

use super::prelude::*;
use crate::{rope::Rope, self_attention::NormPlace};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-5, tied: false, max_positions: 2048 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    build_with("olmo2", config, weights, dims, heads, |_| (LayerSpec::Full, rope.clone()))
}

/// The graph, in which a layer may see and is rotated as `of_layer` says.
pub(super) fn build_with(
    model_type: &str,
    config: &Config,
    weights: Weights,
    dims: Dims,
    heads: Heads,
    of_layer: impl Fn(usize) -> (LayerSpec, Rope),
) -> Result<Decoder> {
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    if config.f64("clip_qkv")?.is_some() {
        return Err(config.error("clip_qkv", "is not supported"));
    }
    let mlp = mlp(config, "hidden_act", "silu")?;
    let form = NormWeight::Plain;
    let options = DecoderOptions::default();
    assemble(model_type, dims, weights, form, options, |weights, at, layer| {
        let (spec, rope) = of_layer(layer);
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(form),
            norm_place: NormPlace::AllHeads,
            ..AttentionOptions::new(heads, rope, spec)
        };
        dense_block(weights, at, &dims, (Norms::After, form), attention, mlp)
    })
}
