//! LFM3 (HF `Lfm3ForCausalLM`): LFM2's short convolutions between windowed and full attention, each rotated
//! its own way, a gate on every head, and norms around both halves.

use serde_json::json;

use super::{assemble_before, layer_kinds, lfm2, prelude::*, window};
use crate::{
    activation::Activation,
    block::{FeedForward, Mixer, TransformerBlock},
    mlp::GatedMlp,
    rope::{Rope, RopeParameters},
    self_attention::{Gating, OutputGate, SelfAttention},
    short_convolution::ShortConvolution,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: Some(128),
    eps: 1e-5,
    tied: true,
    max_positions: 128_000,
};

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let config = &config.clone().or_value(
        "rope_parameters",
        json!({
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        }),
    );
    let eps = config.f32("norm_eps")?.unwrap_or(DEFAULTS.eps);
    let dims = Dims { eps, ..Dims::read(config, &DEFAULTS)? };
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let known = [("conv", None), (FULL, Some(FULL)), (SLIDING, Some(SLIDING))];
    let kinds = layer_kinds(config, &dims, "layer_types", &known, |layer| match layer % 4 {
        2 => Some(FULL),
        0 if layer > 0 => Some(SLIDING),
        _ => None,
    })?;
    let of_kind = |kind| {
        let is_there = kinds.contains(&Some(kind));
        is_there.then(|| rope(config, &dims, heads, kind)).transpose()
    };
    let (full, local) = (of_kind(FULL)?, of_kind(SLIDING)?);
    let window = window(config, Some(256))?;
    let flag = |key: &str, default| Ok::<_, crate::Error>(config.bool(key)?.unwrap_or(default));
    let (bias, conv_bias) = (flag("attention_bias", false)?, flag("conv_bias", false)?);
    let is_gated = flag("use_attention_gate", true)?;
    let norms = if flag("use_sandwich_norm", true)? { Norms::AroundLfm } else { Norms::BeforeLfm };
    let width = if config.has("conv_L_cache") { config.size("conv_L_cache")? } else { 7 };
    let mlp = MlpOptions::new(config.size("intermediate_size")?, Activation::Silu);
    let form = NormWeight::Plain;
    let (norm, options) = (("model.embedding_norm", form), DecoderOptions::default());
    assemble_before("lfm3", dims, weights, norm, options, |weights, at, layer| {
        let mixer = match kinds[layer] {
            None => {
                let at = format!("{at}.conv");
                let convolution =
                    ShortConvolution::load(weights, &at, dims.hidden, width, conv_bias)?;
                Mixer::Convolution { convolution }
            }
            Some(kind) => {
                let (rope, window) = if kind == FULL { (&full, None) } else { (&local, window) };
                let at = format!("{at}.self_attn");
                // HF's files have the one, its modules the other.
                let is_short = weights.has(&format!("{at}.g_proj.weight"));
                let name = if is_short { "g_proj" } else { "gate_proj" };
                let gate = OutputGate::Own { name, of: Gating::Sigmoid, per_head: true };
                let attention = AttentionOptions {
                    qkv_bias: bias,
                    output_bias: bias,
                    head_norms: Some(form),
                    output_gate: Some(gate).filter(|_| is_gated),
                    ..AttentionOptions::new(heads, rope.clone(), spec(window))
                };
                Mixer::Attention { attention: SelfAttention::load(weights, &at, &dims, attention)? }
            }
        };
        let (inside, names) = (format!("{at}.feed_forward"), lfm2::NUMBERED);
        let mlp = GatedMlp::load_named(weights, &inside, dims.hidden, names, mlp)?;
        let half = FeedForward::Gated { mlp };
        Ok(Box::new(TransformerBlock::load(weights, at, &dims, (norms, form), mixer, half)?))
    })
}

/// The rotary embedding of layers of a `kind`. As in HF, a part is for proportional ones: others rotate
/// whole heads.
fn rope(config: &Config, dims: &Dims, heads: Heads, kind: &str) -> Result<Rope> {
    let kinds = config.require("rope_parameters", Config::object)?;
    let of_kind = kinds.require(kind, Config::object)?;
    let parameters = RopeParameters::new(config, Some(of_kind), 1e6, dims.max_positions)?;
    Rope::new(&parameters, heads.dim, heads.dim)
}
