//! Gemma 4 (HF `Gemma4ForCausalLM`; of the multimodal models, the language model): windowed and full layers
//! with heads of their own size, values that are normed keys, layers that read an earlier one's columns,
//! experts beside the dense half, and inputs for each layer.

mod attention;
mod mixture;

use std::collections::BTreeMap;

use mlx_rs::Array;
use serde_json::{Value, json};

pub(in crate::families) use self::attention::Attention;
use self::mixture::Mixture;
use super::{layer_kinds, prelude::*, soft_cap, window};
use crate::{
    Error, ErrorKind,
    activation::Activation,
    block::Block,
    linear::Linear,
    mlp::GatedMlp,
    norm::RmsNorm,
    parameters::{Tensor, visit},
    pass::BlockPass,
    per_layer::{self, PerLayerInputs},
    rope::{Rope, RopeParameters},
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: Some(256),
    eps: 1e-6,
    tied: true,
    max_positions: 131_072,
};

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// The language model of `Gemma4ForConditionalGeneration` and `Gemma4UnifiedForConditionalGeneration`;
/// [`Weights`] has left the rest out.
pub(super) fn build_multimodal(config: &Config, weights: Weights) -> Result<Decoder> {
    let text = config.require("text_config", Config::object)?;
    let unified = config.str("model_type")? == Some("gemma4_unified");
    let known = if unified { "gemma4_unified_text" } else { "gemma4_text" };
    if let Some(other) = text.str("model_type")?.filter(|it| *it != known) {
        return Err(text.error("model_type", format_args!("is {other:?}; known is {known}")));
    }
    if unified { build_unified(&text, weights) } else { build(&text, weights) }
}

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let key = "hidden_size_per_layer_input";
    let per_layer = match config.usize(key)? {
        None => 256,
        Some(0) => 0,
        Some(_) => config.size(key)?,
    };
    let is_mixture = config.bool("enable_moe_block")?.unwrap_or(false);
    build_with("gemma4_text", config, weights, (512, per_layer, is_mixture))
}

/// The 12B model's: without inputs per layer and experts.
pub(super) fn build_unified(config: &Config, weights: Weights) -> Result<Decoder> {
    build_with("gemma4_unified_text", config, weights, (1024, 0, false))
}

fn build_with(
    model_type: &str,
    config: &Config,
    mut weights: Weights,
    (default_window, per_layer, is_mixture): (usize, usize, bool),
) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let key = "use_bidirectional_attention";
    if let Some(other) = config.str(key)?.filter(|it| *it != "vision") {
        return Err(config.error(key, format_args!("is {other:?}; known are vision and null")));
    }
    let layers = layers(config, &dims, default_window)?;
    let activation = Activation::read(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let inner = config.size("intermediate_size")?;
    let wide = config.bool("use_double_wide_mlp")?.unwrap_or(false);
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let keys_are_values = config.bool("attention_k_eq_v")?.unwrap_or(false);
    let mixture = if is_mixture { Some(mixture::sizes(config, activation)?) } else { None };
    let inputs = if per_layer == 0 {
        None
    } else {
        let key = "vocab_size_per_layer_input";
        let tokens = if config.has(key) { config.size(key)? } else { 262_144 };
        if tokens < dims.vocab {
            let what = format_args!("is {tokens}, for a vocabulary of {}", dims.vocab);
            return Err(config.error(key, what));
        }
        let sizes = [dims.hidden, dims.layers, per_layer];
        Some(PerLayerInputs::load(&mut weights, tokens, sizes, dims.eps)?)
    };
    let form = NormWeight::Plain;
    let options = DecoderOptions {
        embedding_scale: Some((dims.hidden as f32).sqrt()),
        logit_cap: soft_cap(config, "final_logit_softcapping", None)?,
        ..DecoderOptions::default()
    };
    let mut decoder = assemble(model_type, dims, weights, form, options, |weights, at, index| {
        let layer = &layers[index];
        let is_shared = matches!(layer.spec, LayerSpec::Shared { .. });
        let inner = if wide && is_shared { 2 * inner } else { inner };
        let mlp = MlpOptions::new(inner, activation);
        let keys_are_values = keys_are_values && !layer.slides;
        let hidden = dims.hidden;
        let norm = |weights: &mut Weights, name: &str| {
            weights.norm(&format!("{at}.{name}"), hidden, dims.eps, form)
        };
        Ok(Box::new(Gemma4Block {
            input_norm: norm(weights, "input_layernorm")?,
            attention: Attention::load(weights, at, &dims, layer, (bias, keys_are_values))?,
            after_attention_norm: norm(weights, "post_attention_layernorm")?,
            feed_forward_norm: norm(weights, "pre_feedforward_layernorm")?,
            mlp: GatedMlp::load(weights, &format!("{at}.mlp"), hidden, mlp)?,
            mixture: mixture.map(|it| Mixture::load(weights, at, &dims, it)).transpose()?,
            after_feed_forward_norm: norm(weights, "post_feedforward_layernorm")?,
            input: match per_layer {
                0 => None,
                width => Some(LayerInput::load(weights, at, &dims, width, activation)?),
            },
            factor: weights.tensor(&format!("{at}.layer_scalar"), &[1])?,
        }))
    })?;
    decoder.per_layer = inputs;
    Ok(decoder)
}

/// What a layer's attention is.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) slides: bool,
    pub(super) spec: LayerSpec,
    pub(super) heads: Heads,
    pub(super) rope: Rope,
}

fn layers(config: &Config, dims: &Dims, default_window: usize) -> Result<Vec<Layer>> {
    let known = [(SLIDING, true), (FULL, false)];
    let mut slides = layer_kinds(config, dims, "layer_types", &known, |it| (it + 1) % 6 != 0)?;
    // As in HF, whatever the config says.
    if let Some(last) = slides.last_mut() {
        *last = false;
    }
    let window = window(config, Some(default_window))?;
    let specs = shared_specs(config, dims, &slides, window, 0)?;
    let heads = heads(config, dims, &slides)?;
    let mut ropes = Vec::new();
    for (kind, is_sliding) in known {
        let dim = slides.iter().position(|&it| it == is_sliding).map(|at| heads[at].dim);
        ropes.push(dim.map(|dim| rope(config, dims, kind, dim)).transpose()?);
    }
    let layer = |index: usize| {
        let rope = ropes[usize::from(!slides[index])].clone();
        let rope = rope.ok_or_else(|| config.error("layer_types", "lacks a kind"))?;
        let spec = specs[index];
        Ok(Layer { slides: slides[index], spec, heads: heads[index], rope })
    };
    (0..dims.layers).map(layer).collect()
}

/// What each layer sees, of which the last `num_kv_shared_layers` read the columns of the last one of
/// their kind that has its own.
pub(super) fn shared_specs(
    config: &Config,
    dims: &Dims,
    slides: &[bool],
    window: Option<usize>,
    default: usize,
) -> Result<Vec<LayerSpec>> {
    let key = "num_kv_shared_layers";
    let shared = config.usize(key)?.unwrap_or(default);
    let Some(own) = dims.layers.checked_sub(shared).filter(|&it| it > 0) else {
        return Err(config.error(key, format_args!("is {shared}, of {} layers", dims.layers)));
    };
    let sees = |index: usize| {
        let owner = slides[..own].iter().rposition(|&it| it == slides[index]);
        match (index < own, owner) {
            (true, _) => Ok(spec(window.filter(|_| slides[index]))),
            (false, Some(owner)) => Ok(LayerSpec::Shared { owner }),
            (false, None) => {
                let what = format_args!("is {shared}, but layer {index} has none to share");
                Err(config.error(key, what))
            }
        }
    };
    (0..dims.layers).map(sees).collect()
}

/// The heads of each layer: the full ones' are others, by `global_head_dim` and
/// `num_global_key_value_heads`, or by `per_layer_config` as transformers writes it.
fn heads(config: &Config, dims: &Dims, slides: &[bool]) -> Result<Vec<Heads>> {
    let usual = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let mut of_layers = vec![usual; slides.len()];
    let key = "per_layer_config";
    if let Some(overrides) = config.object(key)? {
        for (layer, _) in overrides.entries() {
            let index = layer.parse().ok().filter(|&it| it < slides.len());
            let index: usize =
                index.ok_or_else(|| overrides.error(layer, "is not the number of a layer"))?;
            let entry = overrides.require(layer, Config::object)?;
            if let Some((other, _)) = entry
                .entries()
                .find(|(it, _)| !["head_dim", "num_key_value_heads"].contains(&it.as_str()))
            {
                return Err(entry.error(other, "is not supported"));
            }
            of_layers[index] = entry.heads_like(usual)?;
        }
    } else {
        let keys_are_values = config.bool("attention_k_eq_v")?.unwrap_or(false);
        let of_full = config.usize("num_global_key_value_heads")?.filter(|_| keys_are_values);
        let dim = config.usize("global_head_dim")?.unwrap_or(512);
        let entry = config.empty(FULL).or_value("head_dim", Value::from(dim));
        let entry = entry.or_value("num_key_value_heads", Value::from(of_full));
        let full = entry.heads_like(usual)?;
        for (heads, _) in of_layers.iter_mut().zip(slides).filter(|(_, slides)| !**slides) {
            *heads = full;
        }
    }
    let mut dims_of = BTreeMap::new();
    for (heads, slides) in of_layers.iter().zip(slides) {
        if *dims_of.entry(slides).or_insert(heads.dim) != heads.dim {
            return Err(config.error(key, "gives layers of one kind heads of unlike sizes"));
        }
    }
    Ok(of_layers)
}

fn rope(config: &Config, dims: &Dims, kind: &str, dim: usize) -> Result<Rope> {
    let config = config.clone().or_value(
        "rope_parameters",
        json!({
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        }),
    );
    let all = config.require("rope_parameters", Config::object)?;
    let of_kind = all.require(kind, Config::object)?;
    let theta = of_kind.require("rope_theta", Config::positive)?;
    let parameters = RopeParameters::new(&config, Some(of_kind), theta, dims.max_positions)?;
    Rope::new(&parameters, dim, dim)
}

#[derive(Debug)]
struct Gemma4Block {
    input_norm: RmsNorm,
    attention: Attention,
    after_attention_norm: RmsNorm,
    feed_forward_norm: RmsNorm,
    mlp: GatedMlp,
    mixture: Option<Mixture>,
    after_feed_forward_norm: RmsNorm,
    input: Option<LayerInput>,
    /// `[1]`.
    factor: Tensor,
}

visit!(struct Gemma4Block {
    input_norm,
    attention,
    after_attention_norm,
    feed_forward_norm,
    mlp,
    mixture,
    after_feed_forward_norm,
    input,
    factor,
});

impl Block for Gemma4Block {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        let mixed = self.attention.forward(layer, &self.input_norm.forward(hidden)?, pass)?;
        Ok(Some(self.after_attention_norm.forward(&mixed)?))
    }

    fn feed_forward(
        &self,
        layer: usize,
        hidden: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Option<Array>> {
        let fed = self.mlp.forward(&self.feed_forward_norm.forward(hidden)?)?;
        let fed = match &self.mixture {
            None => fed,
            Some(mixture) => mixture.beside(&fed, hidden)?,
        };
        let fed = self.after_feed_forward_norm.forward(&fed)?;
        let Some(input) = &self.input else { return Ok(Some(fed)) };
        let Some(inputs) = &pass.per_layer else {
            let what = "a block with an input per layer ran without any";
            return Err(Error::new(ErrorKind::Mlx, what));
        };
        let more = input.forward(&hidden.add(&fed)?, &per_layer::of_layer(inputs, layer)?)?;
        Ok(Some(fed.add(more)?))
    }

    fn factor(&self) -> Option<&Array> {
        Some(self.factor.array())
    }

    fn spec(&self) -> LayerSpec {
        self.attention.spec()
    }

    fn cached_per_token(&self) -> usize {
        self.attention.cached_per_token()
    }

    fn head_dims(&self) -> Option<[usize; 2]> {
        self.attention.head_dims()
    }
}

/// What a layer makes of its own input and the stream.
#[derive(Debug)]
pub(super) struct LayerInput {
    gate: Linear,
    projection: Linear,
    norm: RmsNorm,
    activation: Activation,
}

visit!(struct LayerInput { gate, projection, norm });

impl LayerInput {
    /// Loads the part of the block at `at` (`model.layers.3`), for inputs of `width` numbers.
    pub(super) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        width: usize,
        activation: Activation,
    ) -> Result<Self> {
        let (hidden, name) = (dims.hidden, |it: &str| format!("{at}.{it}"));
        let norm = name("post_per_layer_input_norm");
        Ok(Self {
            gate: weights.linear(&name("per_layer_input_gate"), width, hidden, false)?,
            projection: weights.linear(&name("per_layer_projection"), hidden, width, false)?,
            norm: weights.norm(&norm, hidden, dims.eps, NormWeight::Plain)?,
            activation,
        })
    }

    pub(super) fn forward(&self, hidden: &Array, input: &Array) -> Result<Array> {
        let gate = self.activation.forward(&self.gate.forward(hidden)?)?;
        Ok(self.norm.forward(&self.projection.forward(&gate.multiply(input)?)?)?)
    }
}
