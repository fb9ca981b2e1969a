//! Qwen3-Next and Qwen3-Coder-Next (HF `Qwen3NextForCausalLM`): the graph of Qwen3.5 with fused inputs of
//! the gated delta rules, and a mixture of experts in most layers.

use super::{
    prelude::*,
    qwen3_5::{Hybrid, mixture},
    qwen3_moe::sparse_layers,
};
use crate::{block::FeedForward, mlp::GatedMlp, moe::MixtureOfExperts};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let config = &config.clone().or(&[("num_key_value_heads", 2)]);
    let normalise = config.bool("norm_topk_prob")?.unwrap_or(true);
    let mixture = mixture(config, (512, 10), normalise)?;
    let is_sparse = sparse_layers(config, mixture.experts)?;
    let graph = Hybrid { model_type: "qwen3_next", fused: true, tied: false };
    graph.build(config, weights, |weights, at, dims, layer| {
        if is_sparse(layer) {
            return Ok(FeedForward::Mixture {
                experts: MixtureOfExperts::load(weights, at, mixture)?,
            });
        }
        let mlp = mlp(config, "hidden_act", "silu")?;
        Ok(FeedForward::Gated { mlp: GatedMlp::load(weights, at, dims.hidden, mlp)? })
    })
}
