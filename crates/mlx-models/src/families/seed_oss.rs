//! Seed-OSS (HF `SeedOssForCausalLM`): Llama with biases on queries, keys and values.

use super::prelude::*;

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    head_dim: Some(128),
    eps: 1e-6,
    tied: false,
    max_positions: 524_288,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(true);
    let output_bias = config.bool("attention_out_bias")?.unwrap_or(false);
    let mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    let mlp = MlpOptions { bias: mlp_bias, ..mlp(config, "hidden_act", "silu")? };
    let form = NormWeight::Plain;
    assemble("seed_oss", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias,
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}
