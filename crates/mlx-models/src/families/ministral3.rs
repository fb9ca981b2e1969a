//! Ministral 3 (HF `Ministral3ForCausalLM`): Mistral with queries that grow with their position.

use serde_json::json;

use super::{growth, prelude::*, rope, window};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    head_dim: Some(128),
    eps: 1e-5,
    tied: false,
    max_positions: 262_144,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    // What the class has for a config that names no rotary embedding.
    let config = &config.clone().or_value(
        "rope_parameters",
        json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16_384, "llama_4_scaling_beta": 0.1}),
    );
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let growth = growth(config, &dims)?;
    let spec = spec(window(config, None)?);
    let mlp = mlp(config, "hidden_act", "silu")?;
    let form = NormWeight::Plain;
    assemble("ministral3", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions {
            growth: Some(growth),
            ..AttentionOptions::new(heads, rope.clone(), spec)
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}
