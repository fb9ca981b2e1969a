//! SmolLM3 (HF `SmolLM3ForCausalLM`): Llama, of whose layers some know no positions.

use serde_json::Value;

use super::{RopeStyle, prelude::*, sliding_layers, styled_rope, window};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(4), head_dim: None, eps: 1e-6, tied: true, max_positions: 32_768 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = styled_rope(config, &dims, heads, RopeStyle::of_theta(2_000_000.0))?;
    let rotated = rotated_layers(config, &dims)?;
    let window = window(config, None)?;
    let slides = config.bool("use_sliding_window")?.unwrap_or(false);
    let sliding = sliding_layers(config, &dims, |layer| slides && !rotated[layer])?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    let mlp = MlpOptions { bias: mlp_bias, ..mlp(config, "hidden_act", "silu")? };
    let form = NormWeight::Plain;
    assemble("smollm3", dims, weights, form, DecoderOptions::default(), |weights, at, layer| {
        let spec = spec(window.filter(|_| sliding[layer]));
        let rope = rotated[layer].then(|| rope.clone());
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionOptions::new(heads, rope, spec)
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}

/// Which layers rotate queries and keys: by `no_rope_layers`, where 1 stands for those that do.
fn rotated_layers(config: &Config, dims: &Dims) -> Result<Vec<bool>> {
    let key = "no_rope_layers";
    let flag = |value: &Value| value.as_u64().filter(|&it| it < 2).map(|it| it == 1);
    match config.list(key, "a list of 0 and 1", flag)? {
        Some(found) if found.len() != dims.layers => {
            let what = format_args!("has {} entries for {} layers", found.len(), dims.layers);
            Err(config.error(key, what))
        }
        Some(found) => Ok(found),
        None => {
            let interval = config.usize("no_rope_layer_interval")?.unwrap_or(4).max(1);
            Ok((0..dims.layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect())
        }
    }
}
