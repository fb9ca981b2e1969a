//! Qwen3-MoE (HF `Qwen3MoeForCausalLM`): Qwen3's attention, a mixture of experts in most layers.

use serde_json::Value;

use crate::{
    Decoder, Result,
    activation::Activation,
    block::{AttentionOptions, FeedForward, GatedMlp, SelfAttention, TransformerBlock},
    config::{Config, Defaults, Dims},
    decoder::DecoderOptions,
    families::{assemble, layer_name, spec, window},
    moe::{MixtureDims, MixtureOfExperts},
    norm::NormWeight,
    rope::{Rope, RopeParameters},
    weights::Weights,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(4), head_dim: None, eps: 1e-6, tied: false, max_positions: 32_768 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let rope = Rope::new(&parameters, dims.head_dim, dims.head_dim)?;
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    // Unlike Qwen3, this graph gives the window to all layers.
    let slides = config.bool("use_sliding_window")?.unwrap_or(false);
    let spec = spec(if slides { window(config, Some(4096))? } else { None });
    let mixture = mixture(config, &dims)?;
    let is_sparse = sparse_layers(config, mixture.experts)?;
    let stored = NormWeight::Plain;
    let options = DecoderOptions::default();
    assemble("qwen3_moe", dims.clone(), weights, stored, options, |weights, layer| {
        let at = layer_name(layer);
        let options = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(stored),
            ..AttentionOptions::new(rope.clone(), spec)
        };
        let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, options)?;
        let mlp = format!("{at}.mlp");
        let mlp = if is_sparse(layer) {
            FeedForward::Experts(MixtureOfExperts::load(weights, &mlp, mixture)?)
        } else {
            FeedForward::Gated(GatedMlp::load(weights, &mlp, &dims, activation, false)?)
        };
        let block = TransformerBlock::load(weights, &at, &dims, stored, attention, mlp)?;
        Ok((spec, Box::new(block)))
    })
}

fn mixture(config: &Config, dims: &Dims) -> Result<MixtureDims> {
    let experts = config.usize("num_experts")?.or(config.usize("num_local_experts")?);
    let mixture = MixtureDims {
        hidden: dims.hidden,
        intermediate: config.usize("moe_intermediate_size")?.unwrap_or(768),
        experts: experts.unwrap_or(128),
        chosen: config.usize("num_experts_per_tok")?.unwrap_or(8),
        normalise: config.bool("norm_topk_prob")?.unwrap_or(false),
    };
    if mixture.experts > 0 && !(1..=mixture.experts).contains(&mixture.chosen) {
        let what = format!("is {}, with {} experts", mixture.chosen, mixture.experts);
        return Err(config.error("num_experts_per_tok", what));
    }
    Ok(mixture)
}

/// Every `decoder_sparse_step`-th layer, except those in `mlp_only_layers`.
fn sparse_layers(config: &Config, experts: usize) -> Result<impl Fn(usize) -> bool> {
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
