//! Mistral (HF `MistralForCausalLM`): Llama without biases, every layer with a sliding window.

use super::{prelude::*, window};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(8), head_dim: None, eps: 1e-6, tied: false, max_positions: 131_072 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let spec = spec(window(config, Some(4096))?);
    let mlp = mlp(config, "hidden_act", "silu")?;
    let form = NormWeight::Plain;
    assemble("mistral", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions::new(heads, rope.clone(), spec);
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}
