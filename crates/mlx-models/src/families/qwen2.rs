//! Qwen2 and Qwen2.5 (HF `Qwen2ForCausalLM`): biases on queries, keys and values.

use super::{prelude::*, qwen_windows};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(32), head_dim: None, eps: 1e-6, tied: false, max_positions: 32_768 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let mlp = mlp(config, "hidden_act", "silu")?;
    let specs = qwen_windows(config, &dims)?;
    let form = NormWeight::Plain;
    assemble("qwen2", dims, weights, form, DecoderOptions::default(), |weights, at, layer| {
        let attention = AttentionOptions {
            qkv_bias: true,
            ..AttentionOptions::new(heads, rope.clone(), specs[layer])
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}
