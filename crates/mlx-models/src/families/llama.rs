//! Llama 1 to 3 (HF `LlamaForCausalLM`).

use super::prelude::*;

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-6, tied: false, max_positions: 2048 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    let mlp = MlpOptions { bias: mlp_bias, ..mlp(config, "hidden_act", "silu")? };
    let form = NormWeight::Plain;
    assemble("llama", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}
