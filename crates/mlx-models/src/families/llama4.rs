//! Llama 4 (HF `Llama4ForCausalLM`; of the multimodal models, the language model): attention within pieces
//! of the text, layers without positions whose queries grow, experts that are given their share of a token.

use mlx_rs::{Array, Dtype};
use serde_json::Value;

use super::{RopeStyle, chosen_of, layer_kinds, prelude::*, styled_rope};
use crate::{
    activation::Activation,
    backend::Backend,
    block::Block,
    growth::Growth,
    linear::Linear,
    mlp::GatedMlp,
    norm::RmsNorm,
    parameters::visit,
    pass::BlockPass,
    routed_experts::{ExpertNames, Gate, RoutedExperts},
    routing::{Routing, Scores},
    self_attention::{NormPlace, SelfAttention},
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    head_dim: Some(128),
    eps: 1e-5,
    tied: false,
    max_positions: 131_072,
};

/// mlx-lm keeps the three products of all experts where HF has two, gate and up in one.
const EXPERTS: ExpertNames =
    ExpertNames { together: "experts", transposed: true, ..ExpertNames::USUAL };

/// The language model of `Llama4ForConditionalGeneration`; [`Weights`] has left the rest out.
pub(super) fn build_multimodal(config: &Config, weights: Weights) -> Result<Decoder> {
    let text = config.require("text_config", Config::object)?;
    if let Some(other) = text.str("model_type")?.filter(|it| *it != "llama4_text") {
        return Err(text.error("model_type", format_args!("is {other:?}; known is llama4_text")));
    }
    build(&text, weights)
}

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let style = RopeStyle { interleaved: true, ..RopeStyle::of_theta(500_000.0) };
    let rope = styled_rope(config, &dims, heads, style)?;
    let is_rotated = rotated_layers(config, &dims)?;
    let specs = specs(config, &dims, &is_rotated)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let is_normed = config.bool("use_qk_norm")?.unwrap_or(true);
    let growth = growth(config)?;
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let (experts, chosen) =
        chosen_of(config, ("num_local_experts", 16), ("num_experts_per_tok", 1))?;
    let inner = config.size("intermediate_size")?;
    let dense = config.usize("intermediate_size_mlp")?.unwrap_or(16_384);
    let is_sparse = sparse_layers(config, &dims)?;
    let form = NormWeight::Plain;
    let options = DecoderOptions::default();
    assemble("llama4_text", dims, weights, form, options, |weights, at, layer| {
        let is_rotated = is_rotated[layer];
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(NormWeight::Unit).filter(|_| is_rotated && is_normed),
            norm_place: NormPlace::RotatedHead,
            growth: growth.filter(|_| !is_rotated),
            ..AttentionOptions::new(heads, Some(rope.clone()).filter(|_| is_rotated), specs[layer])
        };
        let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, attention)?;
        let norm = |weights: &mut Weights, name: &str| {
            weights.norm(&format!("{at}.{name}"), dims.hidden, dims.eps, form)
        };
        let inside = format!("{at}.feed_forward");
        let mlp = |weights: &mut Weights, at: &str, inner| {
            GatedMlp::load(weights, at, dims.hidden, MlpOptions::new(inner, activation))
        };
        let half = if is_sparse[layer] {
            let (sizes, gate) = ([experts, inner, dims.hidden], Gate::Plain(activation));
            let mixture = Mixture {
                router: weights.linear(&format!("{inside}.router"), experts, dims.hidden, false)?,
                routing: Routing::new(Scores::Sigmoid, chosen),
                backend: weights.backend(),
                experts: RoutedExperts::load(weights, &inside, EXPERTS, sizes, gate, false)?,
                shared: mlp(weights, &format!("{inside}.shared_expert"), inner)?,
            };
            Half::Mixture { mixture }
        } else {
            Half::Dense { mlp: mlp(weights, &inside, dense)? }
        };
        Ok(Box::new(Llama4Block {
            input_norm: norm(weights, "input_layernorm")?,
            attention,
            feed_forward_norm: norm(weights, "post_attention_layernorm")?,
            half,
        }))
    })
}

/// Those with a 1 in `no_rope_layers`, which says the opposite of its name; without it all but each fourth.
fn rotated_layers(config: &Config, dims: &Dims) -> Result<Vec<bool>> {
    let key = "no_rope_layers";
    let listed = config.list(key, "a list of 0 and 1", Value::as_u64)?;
    if let Some(listed) = listed.filter(|it| !it.is_empty()) {
        if listed.len() < dims.layers {
            let what = format!("has {} entries for {} layers", listed.len(), dims.layers);
            return Err(config.error(key, what));
        }
        return Ok(listed[..dims.layers].iter().map(|&it| it != 0).collect());
    }
    let key = "no_rope_layer_interval";
    let every = if config.has(key) { config.size(key)? } else { 4 };
    Ok((0..dims.layers).map(|layer| !(layer + 1).is_multiple_of(every)).collect())
}

/// What each layer sees: by `layer_types`, else pieces where it is rotated.
fn specs(config: &Config, dims: &Dims, is_rotated: &[bool]) -> Result<Vec<LayerSpec>> {
    let known = [("chunked_attention", true), ("full_attention", false)];
    let is_chunked = layer_kinds(config, dims, "layer_types", &known, |layer| is_rotated[layer])?;
    let key = "attention_chunk_size";
    let size = match config.usize(key)? {
        Some(0) => return Err(config.error(key, "must be above 0")),
        None if config.has(key) && is_chunked.contains(&true) => {
            return Err(config.error(key, "is null, with layers of chunked_attention"));
        }
        size => size.unwrap_or(8192),
    };
    let spec = |it| if it { LayerSpec::Chunked { size } } else { LayerSpec::Full };
    Ok(is_chunked.into_iter().map(spec).collect())
}

/// How queries grow in layers without positions; `None` where they do not.
fn growth(config: &Config) -> Result<Option<Growth>> {
    // Published configs have a number: 4, which is not 0.
    let key = "attn_temperature_tuning";
    let grows = match config.get(key) {
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        _ => config.bool(key)?.unwrap_or(true),
    };
    if !grows {
        return Ok(None);
    }
    let context = config.usize("floor_scale")?.unwrap_or(8192);
    if context == 0 {
        return Err(config.error("floor_scale", "must be above 0"));
    }
    Ok(Some(Growth { beta: config.f32("attn_scale")?.unwrap_or(0.1), context, ahead: 1 }))
}

/// Those in `moe_layers`; without it each `interleave_moe_layer_step`-th.
fn sparse_layers(config: &Config, dims: &Dims) -> Result<Vec<bool>> {
    let listed = config.list("moe_layers", "a list of layers", Value::as_u64)?;
    if let Some(listed) = listed {
        return Ok((0..dims.layers).map(|layer| listed.contains(&(layer as u64))).collect());
    }
    let key = "interleave_moe_layer_step";
    let every = if config.has(key) { config.size(key)? } else { 1 };
    Ok((0..dims.layers).map(|layer| (layer + 1).is_multiple_of(every)).collect())
}

#[derive(Debug)]
struct Llama4Block {
    input_norm: RmsNorm,
    attention: SelfAttention,
    feed_forward_norm: RmsNorm,
    half: Half,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
enum Half {
    Dense { mlp: GatedMlp },
    Mixture { mixture: Mixture },
}

/// Experts, which are given a token times its share, beside one for every token.
#[derive(Debug)]
struct Mixture {
    router: Linear,
    routing: Routing,
    backend: Backend,
    experts: RoutedExperts,
    shared: GatedMlp,
}

visit!(struct Llama4Block { input_norm, attention, feed_forward_norm, half });
visit!(enum Half { Dense { mlp }, Mixture { mixture } });
visit!(struct Mixture { router, experts, shared });

impl Half {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Dense { mlp } => mlp.forward(x),
            Self::Mixture { mixture } => mixture.forward(x),
        }
    }
}

impl Mixture {
    fn forward(&self, x: &Array) -> Result<Array> {
        let logits = self.router.forward(x)?.as_dtype(Dtype::Float32)?;
        let (chosen, shares) = self.backend.route(&self.routing, logits, None)?;
        let routed = self.experts.forward_shares(x, &chosen, &shares)?;
        Ok(routed.add(self.shared.forward(x)?)?)
    }
}

impl Block for Llama4Block {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        self.attention.forward(layer, &self.input_norm.forward(hidden)?, pass).map(Some)
    }

    fn feed_forward(
        &self,
        _: usize,
        hidden: &Array,
        _: &mut BlockPass<'_>,
    ) -> Result<Option<Array>> {
        self.half.forward(&self.feed_forward_norm.forward(hidden)?).map(Some)
    }

    fn spec(&self) -> LayerSpec {
        self.attention.spec()
    }

    fn cached_per_token(&self) -> usize {
        self.attention.cached_per_token()
    }

    fn attention(&self) -> Option<&SelfAttention> {
        Some(&self.attention)
    }
}
