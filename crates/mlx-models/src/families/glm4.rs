//! GLM-4-0414 (HF `Glm4ForCausalLM`): four norms, and half of each head rotated in neighbouring pairs.

use super::{RopeStyle, prelude::*, styled_rope};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(2),
    head_dim: Some(128),
    eps: 1.5625e-7,
    tied: false,
    max_positions: 131_072,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let style = RopeStyle { part: Some(0.5), interleaved: true, ..RopeStyle::of_theta(10_000.0) };
    let rope = styled_rope(config, &dims, heads, style)?;
    let bias = config.bool("attention_bias")?.unwrap_or(true);
    let mlp = MlpOptions { fused: true, ..mlp(config, "hidden_act", "silu")? };
    let form = NormWeight::Plain;
    assemble("glm4", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        dense_block(weights, at, &dims, (Norms::AroundGlm, form), attention, mlp)
    })
}
