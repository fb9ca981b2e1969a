//! Qwen3.5 to 3.8 (HF `Qwen3_5ForCausalLM`, `Qwen3_5MoeForCausalLM`): layers of gated delta rules, and
//! every few layers attention whose output is gated. Of the multimodal models, the language model is
//! run.
//!
//! There are two layouts of the same model. HF's keeps the norms' weights less 1 and the convolution as
//! torch does; mlx-lm's and mlx-vlm's keep the norms' weights whole and the convolution as MLX does, which
//! is how they are distinguished.

use super::{layer_kinds, prelude::*};
use crate::{
    activation::Activation,
    block::{FeedForward, Mixer, TransformerBlock},
    gated_delta::{DeltaHeads, GatedDelta},
    mlp::GatedMlp,
    moe::{MixtureOfExperts, MixtureOptions, SharedOptions},
    rope::{Rope, RopeParameters},
    routing::{Routing, Scores},
    self_attention::{OutputGate, SelfAttention},
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: Some(256),
    eps: 1e-6,
    tied: false,
    max_positions: 32_768,
};

/// What `Qwen3_5TextConfig` has for fields that a saved wrapper leaves out.
const TEXT_DEFAULTS: [(&str, usize); 5] = [
    ("vocab_size", 248_320),
    ("hidden_size", 4096),
    ("intermediate_size", 12_288),
    ("num_hidden_layers", 32),
    ("num_attention_heads", 16),
];

/// The same for `Qwen3_5MoeTextConfig`.
const MOE_TEXT_DEFAULTS: [(&str, usize); 5] = [
    ("vocab_size", 248_320),
    ("hidden_size", 2048),
    ("num_hidden_layers", 40),
    ("num_attention_heads", 16),
    ("num_key_value_heads", 2),
];

/// The dense model, or the language model of `Qwen3_5ForConditionalGeneration`.
pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let (text, tied) = text_config(config, &TEXT_DEFAULTS)?;
    let mlp = mlp(&text, "hidden_act", "silu")?;
    let graph = Hybrid { model_type: "qwen3_5_text", fused: false, tied };
    graph.build(&text, weights, |weights, at, dims, _| {
        Ok(FeedForward::Gated { mlp: GatedMlp::load(weights, at, dims.hidden, mlp)? })
    })
}

/// The mixture, or the language model of `Qwen3_5MoeForConditionalGeneration`.
pub(super) fn build_moe(config: &Config, weights: Weights) -> Result<Decoder> {
    let (text, tied) = text_config(config, &MOE_TEXT_DEFAULTS)?;
    let mixture = mixture(&text, (256, 8), true)?;
    let graph = Hybrid { model_type: "qwen3_5_moe_text", fused: false, tied };
    graph.build(&text, weights, |weights, at, _, _| {
        Ok(FeedForward::Mixture { experts: MixtureOfExperts::load(weights, at, mixture)? })
    })
}

/// The text model's config, and whether the wrapper around it ties the head.
fn text_config(config: &Config, defaults: &[(&str, usize)]) -> Result<(Config, bool)> {
    match config.object("text_config")? {
        Some(text) => {
            let tied = config.bool("tie_word_embeddings")?.unwrap_or(false);
            Ok((text.or(defaults), tied))
        }
        None => Ok((config.clone(), false)),
    }
}

/// What the graphs of Qwen3-Next and Qwen3.5 differ in.
pub(super) struct Hybrid {
    pub(super) model_type: &'static str,
    /// See [`DeltaHeads::fused`].
    pub(super) fused: bool,
    /// The head, whatever the text model's config says.
    pub(super) tied: bool,
}

impl Hybrid {
    /// Builds the graph around the feed-forward halves, each of which is loaded at its name
    /// (`model.layers.3.mlp`).
    pub(super) fn build(
        self,
        config: &Config,
        mut weights: Weights,
        mut feed_forward: impl FnMut(&mut Weights, &str, &Dims, usize) -> Result<FeedForward>,
    ) -> Result<Decoder> {
        let dims = Dims::read(config, &DEFAULTS)?;
        let dims = Dims { tied: dims.tied || self.tied, ..dims };
        let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
        let mut parameters = RopeParameters::read(config, dims.max_positions)?;
        let rotary = parameters.rotated(config, heads.dim, 0.25)?;
        let rope = Rope::new(&parameters, heads.dim, rotary)?;
        let bias = config.bool("attention_bias")?.unwrap_or(false);
        if !config.bool("attn_output_gate")?.unwrap_or(true) {
            return Err(config.error("attn_output_gate", "is false; only gated attention is known"));
        }
        let delta = delta_heads(config, self.fused)?;
        let activation = Activation::read(config, "hidden_act", "silu")?;
        let is_linear = linear_layers(config, &dims)?;
        // The multi-token-prediction head, which HF leaves out as well.
        weights.leave_out("mtp");
        let form = norm_weights(&weights, &is_linear);
        let options = DecoderOptions::default();
        assemble(self.model_type, dims, weights, form, options, |weights, at, layer| {
            let mixer = if is_linear[layer] {
                let (at, sizes) = (format!("{at}.linear_attn"), (dims.hidden, dims.eps));
                Mixer::Delta { delta: GatedDelta::load(weights, &at, sizes, delta, activation)? }
            } else {
                let attention = AttentionOptions {
                    qkv_bias: bias,
                    output_bias: bias,
                    head_norms: Some(form),
                    output_gate: Some(OutputGate::InQuery),
                    ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
                };
                let at = format!("{at}.self_attn");
                Mixer::Attention { attention: SelfAttention::load(weights, &at, &dims, attention)? }
            };
            let half = feed_forward(weights, &format!("{at}.mlp"), &dims, layer)?;
            let norms = (Norms::Before, form);
            Ok(Box::new(TransformerBlock::load(weights, at, &dims, norms, mixer, half)?))
        })
    }
}

/// By `layer_types`, else all but each `full_attention_interval`-th.
fn linear_layers(config: &Config, dims: &Dims) -> Result<Vec<bool>> {
    let interval = config.usize("full_attention_interval")?.unwrap_or(4);
    if interval == 0 {
        return Err(config.error("full_attention_interval", "must be above 0"));
    }
    let known = [("linear_attention", true), ("full_attention", false)];
    layer_kinds(config, dims, "layer_types", &known, |layer| !(layer + 1).is_multiple_of(interval))
}

fn delta_heads(config: &Config, fused: bool) -> Result<DeltaHeads> {
    let size = |key: &str, default: usize| match config.has(key) {
        true => config.size(key),
        false => Ok(default),
    };
    let heads = DeltaHeads {
        keys: size("linear_num_key_heads", 16)?,
        values: size("linear_num_value_heads", 32)?,
        key_dim: size("linear_key_head_dim", 128)?,
        value_dim: size("linear_value_head_dim", 128)?,
        width: size("linear_conv_kernel_dim", 4)?,
        fused,
    };
    if !heads.values.is_multiple_of(heads.keys) {
        let what = format!("is {}, not a multiple of the {} key heads", heads.values, heads.keys);
        return Err(config.error("linear_num_value_heads", what));
    }
    if heads.width == 1 {
        // The two layouts could not be distinguished.
        return Err(config.error("linear_conv_kernel_dim", "must be above 1"));
    }
    Ok(heads)
}

/// How the file keeps the weights of its norms, which its convolutions tell.
fn norm_weights(weights: &Weights, is_linear: &[bool]) -> NormWeight {
    if let Some(form) = weights.form_of_model() {
        return form;
    }
    let convolution = is_linear.iter().position(|it| *it).and_then(|layer| {
        weights.shape(&format!("model.layers.{layer}.linear_attn.conv1d.weight"))
    });
    match convolution {
        Some(&[.., 1]) => NormWeight::Plain,
        _ => NormWeight::Offset,
    }
}

/// The mixture of either family: softmax over all experts, and a shared expert with a share of its own.
/// `defaults` are the class's numbers of experts and of chosen ones.
pub(super) fn mixture(
    config: &Config,
    defaults: (usize, usize),
    normalise: bool,
) -> Result<MixtureOptions> {
    let experts = config.usize("num_experts")?.unwrap_or(defaults.0);
    let chosen = config.usize("num_experts_per_tok")?.unwrap_or(defaults.1);
    if experts > 0 && !(1..=experts).contains(&chosen) {
        let what = format!("is {chosen}, with {experts} experts");
        return Err(config.error("num_experts_per_tok", what));
    }
    let width = |key: &str| match config.has(key) {
        true => config.size(key),
        false => Ok(512),
    };
    Ok(MixtureOptions {
        hidden: config.size("hidden_size")?,
        inner: width("moe_intermediate_size")?,
        experts,
        activation: Activation::read(config, "hidden_act", "silu")?,
        expert_bias: false,
        routing: Routing {
            normalise: normalise.then_some(0.0),
            ..Routing::new(Scores::Softmax, chosen)
        },
        router_bias: false,
        correction: false,
        shared: Some(SharedOptions {
            inner: width("shared_expert_intermediate_size")?,
            gated: true,
            bias: false,
        }),
    })
}
