//! Muse Glimmer (the language model of HF `MuseGlimmerForConditionalGeneration`): normed embeddings,
//! queries and keys normed without weights, a gate on what heads return, windowed layers that are rotated
//! and full ones that know no positions.

use serde_json::Value;

use super::{prelude::*, rope, sliding_layers, soft_cap, window};
use crate::{
    block::{FeedForward, Mixer, TransformerBlock},
    mlp::GatedMlp,
    self_attention::{Gating, OutputGate, SelfAttention},
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(2),
    head_dim: Some(128),
    eps: 1e-5,
    tied: false,
    max_positions: 131_072,
};

const GATE: OutputGate =
    OutputGate::Own { name: "gate_proj", of: Gating::Sigmoid, per_head: false };

/// The language model; [`Weights`] has left the rest out.
pub(super) fn build_multimodal(config: &Config, weights: Weights) -> Result<Decoder> {
    // Conversions published for mlx-lm have the text model's fields at the top.
    let Some(text) = config.object("text_config")? else { return build(config, weights) };
    if let Some(other) = text.str("model_type")?.filter(|it| *it != "muse_glimmer_text") {
        let what = format_args!("is {other:?}; known is muse_glimmer_text");
        return Err(text.error("model_type", what));
    }
    build(&text, weights)
}

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let is_rotated = rotated_layers(config, &dims)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let window = window(config, Some(2048))?;
    let slides = sliding_layers(config, &dims, |layer| !from_last(&dims, layer))?;
    let mlp = mlp(config, "hidden_activation", "silu")?;
    // On queries, beside the usual scale.
    let factor = config.f32("qk_scale_factor")?.unwrap_or(3.87);
    let after = config.f32("post_norm_eps")?.unwrap_or(1e-8);
    let form = NormWeight::Offset;
    let options = DecoderOptions {
        embedding_norm: true,
        logit_scale: Some(config.f32("output_multiplier")?.unwrap_or(0.196_116_14)),
        logit_cap: soft_cap(config, "final_logit_softcapping", Some(20.0))?,
        ..DecoderOptions::default()
    };
    let model_type = "muse_glimmer_text";
    assemble(model_type, dims, weights, NormWeight::Plain, options, |weights, at, layer| {
        let rope = Some(rope.clone()).filter(|_| is_rotated[layer]);
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(NormWeight::Unit),
            scale: Some(factor * (heads.dim as f32).powf(-0.5)),
            output_gate: Some(GATE),
            ..AttentionOptions::new(heads, rope, spec(window.filter(|_| slides[layer])))
        };
        let inside = format!("{at}.self_attn");
        let attention = SelfAttention::load(weights, &inside, &dims, attention)?;
        let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), dims.hidden, mlp)?;
        let mut norm = |name: &str, eps| {
            weights.norm(&format!("{at}.{name}"), dims.hidden, eps, form).map(Some)
        };
        Ok(Box::new(TransformerBlock {
            input_norm: norm("input_layernorm", dims.eps)?,
            mixer: Mixer::Attention { attention },
            after_attention_norm: norm("post_attention_layernorm", after)?,
            feed_forward_norm: norm("pre_feedforward_layernorm", dims.eps)?,
            feed_forward: FeedForward::Gated { mlp },
            after_feed_forward_norm: norm("post_feedforward_layernorm", after)?,
            residual_scale: None,
        }))
    })
}

/// Every fourth layer, counted from the last.
fn from_last(dims: &Dims, layer: usize) -> bool {
    (dims.layers - 1 - layer).is_multiple_of(4)
}

/// Those whose entry in `layer_rope_theta` is not 0. As in HF, the base itself is that of all layers.
fn rotated_layers(config: &Config, dims: &Dims) -> Result<Vec<bool>> {
    let key = "layer_rope_theta";
    match config.list(key, "a list of numbers", Value::as_f64)? {
        None => Ok((0..dims.layers).map(|layer| !from_last(dims, layer)).collect()),
        Some(thetas) if thetas.len() == dims.layers => {
            Ok(thetas.into_iter().map(|it| it != 0.0).collect())
        }
        Some(thetas) => {
            let what = format!("has {} entries for {} layers", thetas.len(), dims.layers);
            Err(config.error(key, what))
        }
    }
}
