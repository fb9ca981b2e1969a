//! Qwen2-MoE and Qwen1.5-MoE (HF `Qwen2MoeForCausalLM`): Qwen2's attention, a mixture beside a gated
//! shared expert.

use super::{block, chosen_of, prelude::*, qwen3_moe::sparse_layers, sliding_layers, window};
use crate::{
    activation::Activation,
    block::FeedForward,
    mlp::GatedMlp,
    moe::{MixtureOfExperts, MixtureOptions, SharedOptions},
    routing::{Routing, Scores},
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(16), head_dim: None, eps: 1e-6, tied: false, max_positions: 32_768 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("qkv_bias")?.unwrap_or(true);
    let slides = config.bool("use_sliding_window")?.unwrap_or(false);
    let last = config.usize("max_window_layers")?.unwrap_or(28);
    let sliding = sliding_layers(config, &dims, |layer| layer % 2 == 0 && layer < last)?;
    let window = if slides { window(config, Some(4096))? } else { None };
    let (experts, chosen) = chosen_of(config, ("num_experts", 60), ("num_experts_per_tok", 4))?;
    let is_sparse = sparse_layers(config, experts)?;
    let normalise = config.bool("norm_topk_prob")?.unwrap_or(false);
    let shared = config.usize("shared_expert_intermediate_size")?.unwrap_or(5632);
    let mixture = MixtureOptions {
        hidden: dims.hidden,
        inner: config.usize("moe_intermediate_size")?.unwrap_or(1408),
        experts,
        activation: Activation::read(config, "hidden_act", "silu")?,
        expert_bias: false,
        routing: Routing {
            normalise: normalise.then_some(0.0),
            ..Routing::new(Scores::Softmax, chosen)
        },
        router_bias: false,
        correction: false,
        shared: Some(SharedOptions { inner: shared, gated: true, bias: false }),
    };
    let form = NormWeight::Plain;
    assemble("qwen2_moe", dims, weights, form, DecoderOptions::default(), |weights, at, layer| {
        let spec = spec(window.filter(|_| sliding[layer]));
        let attention =
            AttentionOptions { qkv_bias: bias, ..AttentionOptions::new(heads, rope.clone(), spec) };
        let inside = format!("{at}.mlp");
        let half = if is_sparse(layer) {
            FeedForward::Mixture { experts: MixtureOfExperts::load(weights, &inside, mixture)? }
        } else {
            let mlp = mlp(config, "hidden_act", "silu")?;
            FeedForward::Gated { mlp: GatedMlp::load(weights, &inside, dims.hidden, mlp)? }
        };
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}
