//! Qwen3 (HF `Qwen3ForCausalLM`): norms on each head's queries and keys.

use super::{prelude::*, qwen_windows};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(32),
    head_dim: Some(128),
    eps: 1e-6,
    tied: false,
    max_positions: 32_768,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let mlp = mlp(config, "hidden_act", "silu")?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let specs = qwen_windows(config, &dims)?;
    let form = NormWeight::Plain;
    assemble("qwen3", dims, weights, form, DecoderOptions::default(), |weights, at, layer| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(form),
            ..AttentionOptions::new(heads, rope.clone(), specs[layer])
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}
