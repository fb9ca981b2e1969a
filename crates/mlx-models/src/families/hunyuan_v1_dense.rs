//! Hunyuan, dense (HF `HunYuanDenseV1ForCausalLM`): norms on queries and keys after the rotation.

use super::prelude::*;
use crate::{
    rope::{Rope, RopeParameters},
    self_attention::{AttentionNames, NormPlace},
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-5, tied: false, max_positions: 2048 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mlp = mlp(config, "hidden_act", "silu")?;
    let form = NormWeight::Plain;
    let options = DecoderOptions::default();
    assemble("hunyuan_v1_dense", dims, weights, form, options, |weights, at, _| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(form),
            norm_place: NormPlace::RotatedHead,
            names: AttentionNames {
                norms: ["query_layernorm", "key_layernorm"],
                ..AttentionNames::USUAL
            },
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}

/// A "dynamic" embedding with an alpha is a plain one with a larger theta.
fn rope(config: &Config, dims: &Dims, heads: Heads) -> Result<Rope> {
    let mut parameters = RopeParameters::read(config, dims.max_positions)?;
    let alpha = parameters.scaling().f64("alpha")?.filter(|&it| it != 0.0);
    if let ("dynamic", Some(alpha)) = (parameters.kind.as_str(), alpha) {
        let dim = heads.dim as f64;
        parameters.kind = "default".to_owned();
        parameters.theta *= alpha.powf(dim / (dim - 2.0));
    }
    Rope::new(&parameters, heads.dim, heads.dim)
}
