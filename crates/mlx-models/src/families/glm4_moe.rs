//! GLM-4.5 to 4.7 (HF `Glm4MoeForCausalLM`): grouped-query attention on half rotated heads, DeepSeek's
//! mixture after the first layers.

use super::{RopeStyle, block, deepseek, prelude::*, styled_rope};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(8), head_dim: None, eps: 1e-5, tied: false, max_positions: 131_072 };

const MIXTURE: deepseek::Mixture = deepseek::Mixture {
    experts: 128,
    chosen: 8,
    inner: 1408,
    shared: 1,
    scale: 1.0,
    groups: (1, 1),
    ..deepseek::Mixture::V3
};

pub(super) fn build(config: &Config, mut weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let style = RopeStyle { part: Some(0.5), ..RopeStyle::of_theta(10_000.0) };
    let rope = styled_rope(config, &dims, heads, style)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let form = NormWeight::Plain;
    let head_norms = config.bool("use_qk_norm")?.unwrap_or(false).then_some(form);
    let halves = deepseek::Halves::read(config, &dims, MIXTURE)?.with_dense_first(config, 1)?;
    deepseek::skip_heads(config, &dims, &mut weights)?;
    assemble("glm4_moe", dims, weights, form, DecoderOptions::default(), |weights, at, layer| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            head_norms,
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        let half = halves.load(weights, at, layer)?;
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}
