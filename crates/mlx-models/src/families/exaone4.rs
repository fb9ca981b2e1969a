//! EXAONE 4 (HF `Exaone4ForCausalLM`): norms after each half and on each head; among windowed layers, the
//! full ones know no positions.

use super::{prelude::*, sliding_layers, window};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(32), head_dim: None, eps: 1e-5, tied: false, max_positions: 2048 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let window = window(config, Some(4096))?;
    // A pattern may be spelled in letters, too; such configs have `layer_types`.
    let key = "sliding_window_pattern";
    let pattern = if config.has("layer_types") { None } else { config.usize(key)? };
    let pattern = pattern.unwrap_or(4).max(1);
    let rule = |layer: usize| window.is_some() && !(layer + 1).is_multiple_of(pattern);
    let sliding = sliding_layers(config, &dims, rule)?;
    let mlp = mlp(config, "hidden_act", "silu")?;
    let form = NormWeight::Plain;
    assemble("exaone4", dims, weights, form, DecoderOptions::default(), |weights, at, layer| {
        let rope = (window.is_none() || sliding[layer]).then(|| rope.clone());
        let attention = AttentionOptions {
            head_norms: Some(form),
            ..AttentionOptions::new(heads, rope, spec(window.filter(|_| sliding[layer])))
        };
        dense_block(weights, at, &dims, (Norms::After, form), attention, mlp)
    })
}
