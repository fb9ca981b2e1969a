//! LFM2 and LFM2.5 (HF `Lfm2ForCausalLM`, `Lfm2MoeForCausalLM`): short gated convolutions, and attention
//! in some layers.

use super::{RopeStyle, assemble_before, chosen_of, layer_kinds, prelude::*, styled_rope};
use crate::{
    activation::Activation,
    block::{FeedForward, Mixer, TransformerBlock},
    mlp::{GatedMlp, MlpNames},
    moe::{MixtureNames, MixtureOfExperts, MixtureOptions},
    rope::Rope,
    routed_experts::Gate,
    routing::{Routing, Scores},
    self_attention::{AttentionNames, SelfAttention},
    short_convolution::ShortConvolution,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(8), head_dim: None, eps: 1e-5, tied: true, max_positions: 128_000 };

/// HF's names; mlx-lm gives those of the mixture's family their usual ones.
pub(super) const NUMBERED: MlpNames = MlpNames { gate: "w1", up: "w3", down: "w2", both: "" };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let indices = config.list("full_attn_idxs", "a list of layers", serde_json::Value::as_u64)?;
    let is_attention =
        |layer: usize| indices.as_ref().is_none_or(|them| them.contains(&(layer as u64)));
    let mlp = MlpOptions::new(width(config)?, Activation::Silu);
    Graph::read(config, "lfm2", is_attention)?.build(weights, |weights, at, dims, _| {
        let mlp = GatedMlp::load_named(weights, at, dims.hidden, NUMBERED, mlp)?;
        Ok(FeedForward::Gated { mlp })
    })
}

pub(super) fn build_moe(config: &Config, weights: Weights) -> Result<Decoder> {
    if config.get("layer_types").is_none() {
        return Err(config.error("layer_types", "is missing"));
    }
    let dense = config.usize("num_dense_layers")?.unwrap_or(2);
    let inner = config.size("intermediate_size")?;
    let mixture = mixture(config)?;
    Graph::read(config, "lfm2_moe", |_| true)?.build(weights, |weights, at, dims, layer| {
        if layer >= dense {
            let gate = Gate::Plain(Activation::Silu);
            let names = MixtureNames { correction: "expert_bias", ..MixtureNames::NUMBERED };
            let experts = MixtureOfExperts::load_named(weights, at, names, gate, mixture)?;
            return Ok(FeedForward::Mixture { experts });
        }
        let mlx = weights.has(&format!("{at}.gate_proj.weight"));
        let names = if mlx { MlpNames::USUAL } else { NUMBERED };
        let mlp = MlpOptions::new(inner, Activation::Silu);
        let mlp = GatedMlp::load_named(weights, at, dims.hidden, names, mlp)?;
        Ok(FeedForward::Gated { mlp })
    })
}

/// What both families read.
struct Graph {
    model_type: &'static str,
    dims: Dims,
    heads: Heads,
    rope: Rope,
    is_attention: Vec<bool>,
    /// Tokens that a convolution sees.
    width: usize,
    bias: bool,
}

impl Graph {
    fn read(
        config: &Config,
        model_type: &'static str,
        is_attention: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        let dims = Dims::read(config, &DEFAULTS)?;
        let tied = config.bool("tie_embedding")?.unwrap_or(dims.tied);
        let eps = config.f32("norm_eps")?.unwrap_or(DEFAULTS.eps);
        let dims = Dims { tied, eps, ..dims };
        let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
        let known = [("conv", false), ("full_attention", true)];
        let width = if config.has("conv_L_cache") { config.size("conv_L_cache")? } else { 3 };
        Ok(Self {
            model_type,
            dims,
            heads,
            rope: styled_rope(config, &dims, heads, RopeStyle::of_theta(1e6))?,
            is_attention: layer_kinds(config, &dims, "layer_types", &known, is_attention)?,
            width,
            bias: config.bool("conv_bias")?.unwrap_or(false),
        })
    }

    /// Builds the graph around the feed-forward halves, each of which is loaded at its name
    /// (`model.layers.3.feed_forward`).
    fn build(
        self,
        weights: Weights,
        mut feed_forward: impl FnMut(&mut Weights, &str, &Dims, usize) -> Result<FeedForward>,
    ) -> Result<Decoder> {
        let Self { model_type, dims, heads, rope, is_attention, width, bias } = self;
        let form = NormWeight::Plain;
        let (norm, options) = ("model.embedding_norm", DecoderOptions::default());
        assemble_before(model_type, dims, weights, (norm, form), options, |weights, at, layer| {
            let mixer = if is_attention[layer] {
                let attention = AttentionOptions {
                    head_norms: Some(form),
                    names: AttentionNames {
                        output: "out_proj",
                        norms: ["q_layernorm", "k_layernorm"],
                    },
                    ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
                };
                let at = format!("{at}.self_attn");
                Mixer::Attention { attention: SelfAttention::load(weights, &at, &dims, attention)? }
            } else {
                let at = format!("{at}.conv");
                let convolution = ShortConvolution::load(weights, &at, dims.hidden, width, bias)?;
                Mixer::Convolution { convolution }
            };
            let half = feed_forward(weights, &format!("{at}.feed_forward"), &dims, layer)?;
            let norms = (Norms::BeforeLfm, form);
            Ok(Box::new(TransformerBlock::load(weights, at, &dims, norms, mixer, half)?))
        })
    }
}

/// The width inside a dense layer: what the config has, or two thirds of that, times a factor, up to the
/// next multiple.
fn width(config: &Config) -> Result<usize> {
    let given = if config.has("block_ff_dim") { "block_ff_dim" } else { "intermediate_size" };
    let width = config.size(given)?;
    if !config.bool("block_auto_adjust_ff_dim")?.unwrap_or(true) {
        return Ok(width);
    }
    let width = 2 * width / 3;
    let key = "block_ffn_dim_multiplier";
    let factor = if config.has(key) { config.positive(key)? } else { Some(1.0) };
    let Some(factor) = factor else { return Ok(width) };
    let multiple = config.usize("block_multiple_of")?.unwrap_or(256);
    if multiple == 0 {
        return Err(config.error("block_multiple_of", "must be above 0"));
    }
    let width = ((factor * width as f64) as usize).checked_next_multiple_of(multiple);
    let width = width.filter(|it| *it <= i32::MAX as usize);
    width.ok_or_else(|| config.error(key, format_args!("is {factor}, which makes layers too wide")))
}

fn mixture(config: &Config) -> Result<MixtureOptions> {
    let (experts, chosen) = chosen_of(config, ("num_experts", 32), ("num_experts_per_tok", 4))?;
    let normalise = config.bool("norm_topk_prob")?.unwrap_or(true);
    Ok(MixtureOptions {
        hidden: config.size("hidden_size")?,
        inner: config.size("moe_intermediate_size")?,
        experts,
        activation: Activation::Silu,
        expert_bias: false,
        routing: Routing {
            normalise: normalise.then_some(1e-6),
            scale: config.f32("routed_scaling_factor")?.unwrap_or(1.0),
            ..Routing::new(Scores::Sigmoid, chosen)
        },
        router_bias: false,
        correction: config.bool("use_expert_bias")?.unwrap_or(true),
        shared: None,
    })
}
