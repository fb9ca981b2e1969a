//! Gemma 3 (HF `Gemma3ForCausalLM`): local layers with their own rotary base, norms on queries and
//! keys. Of the multimodal models, the language model is run.

use super::{prelude::*, sliding_layers, soft_cap, window};
use crate::rope::{Rope, RopeParameters};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: Some(256),
    eps: 1e-6,
    tied: true,
    max_positions: 131_072,
};

/// What `Gemma3TextConfig` has for fields that the published configs of multimodal models leave out.
const TEXT_DEFAULTS: [(&str, usize); 5] = [
    ("vocab_size", 262_208),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
];

/// The language model of `Gemma3ForConditionalGeneration`; [`Weights`] has left the rest out.
pub(super) fn build_multimodal(config: &Config, weights: Weights) -> Result<Decoder> {
    build(&config.require("text_config", Config::object)?.or(&TEXT_DEFAULTS), weights)
}

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let (global, local) = ropes(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mlp = mlp(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let window = window(config, Some(4096))?;
    let pattern = config.usize("sliding_window_pattern")?.unwrap_or(6).max(1);
    let sliding = sliding_layers(config, &dims, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let scale = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    let form = NormWeight::Offset;
    let options = DecoderOptions {
        embedding_scale: Some((dims.hidden as f32).sqrt()),
        logit_cap: soft_cap(config, "final_logit_softcapping", None)?,
        ..DecoderOptions::default()
    };
    assemble("gemma3_text", dims, weights, form, options, |weights, at, layer| {
        let (spec, rope) = match sliding[layer] {
            true => (spec(window), &local),
            false => (spec(None), &global),
        };
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(form),
            scale: Some(scale),
            ..AttentionOptions::new(heads, rope.clone(), spec)
        };
        dense_block(weights, at, &dims, (Norms::Around, form), attention, mlp)
    })
}

/// The rotary embeddings of full and of sliding layers. The 5.x form keeps one dictionary per layer
/// type; the old one has two bases, and its `rope_scaling` is for the full layers alone.
pub(super) fn ropes(config: &Config, dims: &Dims, heads: Heads) -> Result<(Rope, Rope)> {
    let nested = config.object("rope_parameters")?;
    let of = |kind: &str| nested.as_ref().map_or(Ok(None), |it| it.object(kind));
    let build = |kind: &str, theta_key: &str, default: f64, scaling| {
        let scaling: Option<Config> = scaling;
        let scaling = scaling.or(of(kind)?);
        let theta = config.positive(theta_key)?.unwrap_or(default);
        let parameters = RopeParameters::new(config, scaling, theta, dims.max_positions)?;
        Rope::new(&parameters, heads.dim, heads.dim)
    };
    let scaling = config.object("rope_scaling")?.filter(|it| it.entries().next().is_some());
    let global = build("full_attention", "rope_theta", 1e6, scaling)?;
    let local = build("sliding_attention", "rope_local_base_freq", 1e4, None)?;
    Ok((global, local))
}
