//! Phi-3 and Phi-4 (HF `Phi3ForCausalLM`): fused projections, partly rotated heads, longrope.

use super::{prelude::*, window};
use crate::rope::{Rope, RopeParameters};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-5, tied: false, max_positions: 4096 };

/// HF's class default, which applies even where the dictionary has its own.
const ORIGINAL_CONTEXT: usize = 4096;

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let mut parameters = RopeParameters::read(config, dims.max_positions)?;
    let original = config.usize("original_max_position_embeddings")?.unwrap_or(ORIGINAL_CONTEXT);
    parameters.original = original;
    if matches!(parameters.kind.as_str(), "su" | "yarn") {
        // Early checkpoints call longrope by these names.
        parameters.kind = "longrope".to_owned();
    }
    parameters.reads_again = true;
    let rotary = parameters.rotated(config, heads.dim, 1.0)?;
    let rope = Rope::new(&parameters, heads.dim, rotary)?;
    let spec = spec(window(config, None)?);
    let mlp = MlpOptions { fused: true, ..mlp(config, "hidden_act", "silu")? };
    let form = NormWeight::Plain;
    let options = DecoderOptions {
        original_context: rope.is_long().then_some(original),
        ..DecoderOptions::default()
    };
    assemble("phi3", dims, weights, form, options, |weights, at, _| {
        let attention =
            AttentionOptions { fused: true, ..AttentionOptions::new(heads, rope.clone(), spec) };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}
