//! Qwen3-MoE (HF `Qwen3MoeForCausalLM`): Qwen3's attention, a mixture of experts in most layers.

use serde_json::Value;

use super::{block, prelude::*, window};
use crate::{
    activation::Activation,
    block::FeedForward,
    mlp::GatedMlp,
    moe::{MixtureOfExperts, MixtureOptions},
    routing::{Routing, Scores},
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(4), head_dim: None, eps: 1e-6, tied: false, max_positions: 32_768 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    // Unlike Qwen3, this graph gives the window to all layers.
    let slides = config.bool("use_sliding_window")?.unwrap_or(false);
    let spec = spec(if slides { window(config, Some(4096))? } else { None });
    let defaults = Mixture { experts: 128, inner: 768, normalise: false };
    let mixture = mixture(config, &dims, defaults)?;
    let is_sparse = sparse_layers(config, mixture.experts)?;
    let form = NormWeight::Plain;
    let options = DecoderOptions::default();
    assemble("qwen3_moe", dims, weights, form, options, |weights, at, layer| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(form),
            ..AttentionOptions::new(heads, rope.clone(), spec)
        };
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

/// What a family has where a config leaves a field out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixture {
    pub(super) experts: usize,
    pub(super) inner: usize,
    /// Whether shares are normalised.
    pub(super) normalise: bool,
}

pub(super) fn mixture(config: &Config, dims: &Dims, defaults: Mixture) -> Result<MixtureOptions> {
    let experts = config.usize("num_experts")?.unwrap_or(defaults.experts);
    let chosen = config.usize("num_experts_per_tok")?.unwrap_or(8);
    if experts > 0 && !(1..=experts).contains(&chosen) {
        let what = format!("is {chosen}, with {experts} experts");
        return Err(config.error("num_experts_per_tok", what));
    }
    let normalise = config.bool("norm_topk_prob")?.unwrap_or(defaults.normalise);
    Ok(MixtureOptions {
        hidden: dims.hidden,
        inner: config.usize("moe_intermediate_size")?.unwrap_or(defaults.inner),
        experts,
        activation: Activation::read(config, "hidden_act", "silu")?,
        expert_bias: false,
        routing: Routing {
            normalise: normalise.then_some(0.0),
            ..Routing::new(Scores::Softmax, chosen)
        },
        router_bias: false,
        correction: false,
        shared: None,
    })
}

/// Every `decoder_sparse_step`-th layer, except those in `mlp_only_layers`.
pub(super) fn sparse_layers(config: &Config, experts: usize) -> Result<impl Fn(usize) -> bool> {
    let step = config.usize("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(config.error("decoder_sparse_step", "must be above 0"));
    }
    let dense = config.list("mlp_only_layers", "a list of layers", Value::as_u64)?;
    let dense = dense.unwrap_or_default();
    Ok(move |layer: usize| {
        experts > 0 && (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as u64))
    })
}
