//! Mellum 2 (HF `MellumForCausalLM`): Qwen3-MoE with windows, whose layers are rotated their own way, and
//! dense layers where the config says so.

use super::{block, layer_kinds, prelude::*, qwen3_moe, ropes_by_kind, sliding_layers, window};
use crate::{block::FeedForward, mlp::GatedMlp, moe::MixtureOfExperts};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: Some(128),
    eps: 1e-6,
    tied: false,
    max_positions: 131_072,
};

pub(super) fn build(config: &Config, mut weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let window = window(config, Some(1024))?;
    let slides = sliding_layers(config, &dims, |_| false)?;
    let defaults = [(500_000.0, 1.0), (10_000.0, 1.0)];
    let ropes = ropes_by_kind(config, &dims, heads, &slides, defaults)?;
    let known = [("sparse", true), ("dense", false)];
    let is_sparse = layer_kinds(config, &dims, "mlp_layer_types", &known, |_| true)?;
    let defaults = qwen3_moe::Mixture { experts: 64, inner: 896, normalise: true };
    let mixture = qwen3_moe::mixture(config, &dims, defaults)?;
    let form = NormWeight::Plain;
    // The heads for predicting further tokens.
    weights.leave_out("mtp");
    assemble("mellum", dims, weights, form, DecoderOptions::default(), |weights, at, layer| {
        let spec = spec(window.filter(|_| slides[layer]));
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(form),
            ..AttentionOptions::new(heads, ropes[layer].clone(), spec)
        };
        let inside = format!("{at}.mlp");
        let half = if is_sparse[layer] {
            FeedForward::Mixture { experts: MixtureOfExperts::load(weights, &inside, mixture)? }
        } else {
            let mlp = mlp(config, "hidden_act", "silu")?;
            FeedForward::Gated { mlp: GatedMlp::load(weights, &inside, dims.hidden, mlp)? }
        };
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}
