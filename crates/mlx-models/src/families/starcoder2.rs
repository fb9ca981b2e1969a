//! StarCoder2 (HF `Starcoder2ForCausalLM`): layer norms, biases, and a feed-forward half without a gate.

use super::{block, prelude::*, window};
use crate::{block::FeedForward, mlp::PlainMlp};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(2), head_dim: None, eps: 1e-5, tied: true, max_positions: 4096 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let eps = config.f32("norm_epsilon")?.unwrap_or(DEFAULTS.eps);
    let dims = Dims { eps, ..Dims::read(config, &DEFAULTS)? };
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("use_bias")?.unwrap_or(true);
    let spec = spec(window(config, None)?);
    let mlp = MlpOptions { bias, ..mlp(config, "hidden_act", "gelu_pytorch_tanh")? };
    let form = NormWeight::CentredBias;
    assemble("starcoder2", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionOptions::new(heads, rope.clone(), spec)
        };
        let names = ["c_fc", "c_proj"];
        let mlp = PlainMlp::load(weights, &format!("{at}.mlp"), dims.hidden, names, mlp)?;
        let half = FeedForward::Plain { mlp };
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}
