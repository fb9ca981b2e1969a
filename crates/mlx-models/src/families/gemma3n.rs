//! Gemma 3n (HF `Gemma3nForCausalLM`; of the multimodal models, the language model): four residual streams,
//! of which blocks compute one and correct the others, a low-rank path beside attention, sparse
//! activations, layers that read an earlier one's columns, and inputs for each layer.

mod altup;

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{erfinv, maximum, mean_axis, sqrt},
};
use serde_json::Value;

use self::altup::AltUp;
use super::{
    gemma3,
    gemma4::{Attention, Layer, LayerInput, shared_specs},
    prelude::*,
    sliding_layers, soft_cap, window,
};
use crate::{
    Error, ErrorKind,
    activation::Activation,
    backend::Backend,
    block::Block,
    linear::Linear,
    norm::RmsNorm,
    parameters::visit,
    pass::BlockPass,
    per_layer::{self, PerLayerInputs},
    streams::Streams,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(2),
    head_dim: Some(256),
    eps: 1e-6,
    tied: true,
    max_positions: 32_768,
};

/// What `Gemma3nTextConfig` has for fields that the published configs of multimodal models leave out.
const TEXT_DEFAULTS: [(&str, usize); 5] = [
    ("vocab_size", 262_400),
    ("hidden_size", 2048),
    ("intermediate_size", 16_384),
    ("num_hidden_layers", 35),
    ("num_attention_heads", 8),
];

/// The language model of `Gemma3nForConditionalGeneration`; [`Weights`] has left the rest out.
pub(super) fn build_multimodal(config: &Config, weights: Weights) -> Result<Decoder> {
    let text = config.require("text_config", Config::object)?;
    if let Some(other) = text.str("model_type")?.filter(|it| *it != "gemma3n_text") {
        return Err(text.error("model_type", format_args!("is {other:?}; known is gemma3n_text")));
    }
    build(&text.or(&TEXT_DEFAULTS), weights)
}

pub(super) fn build(config: &Config, mut weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    // Published configs have it. As in HF, scores are not scaled.
    let key = "query_pre_attn_scalar";
    if let Some(other) = config.f64(key)?.filter(|it| *it != 256.0) {
        return Err(
            config.error(key, format_args!("is {other}; known is 256, which changes nothing"))
        );
    }
    let streams = streams(config)?;
    let (full, local) = gemma3::ropes(config, &dims, heads)?;
    let slides = sliding_layers(config, &dims, |layer| !(layer + 1).is_multiple_of(5))?;
    let specs = shared_specs(config, &dims, &slides, window(config, Some(512))?, 15)?;
    let layers: Vec<Layer> = specs
        .into_iter()
        .zip(&slides)
        .map(|(spec, &slides)| {
            let rope = if slides { local.clone() } else { full.clone() };
            Layer { slides, spec, heads, rope }
        })
        .collect();
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let activation = Activation::read(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let inner = widths(config, &dims)?;
    let cutoffs = cutoffs(config, &dims)?;
    let is_scaled = config.bool("altup_correct_scale")?.unwrap_or(true);
    let rank = config.usize("laurel_rank")?.unwrap_or(64);
    let key = "hidden_size_per_layer_input";
    let width = if config.has(key) { config.size(key)? } else { 256 };
    let key = "vocab_size_per_layer_input";
    let tokens = if config.has(key) { config.size(key)? } else { 262_144 };
    let sizes = [dims.hidden, dims.layers, width];
    let inputs = PerLayerInputs::load(&mut weights, tokens, sizes, dims.eps)?.within(&dims, tokens);
    let hidden = dims.hidden;
    let mut products = |name: &str| {
        let product = |it| weights.linear(&format!("model.{name}.{it}"), hidden, hidden, false);
        (0..streams - 1).map(product).collect::<Result<Vec<_>>>()
    };
    let further =
        Streams::new(products("altup_projections")?, products("altup_unembed_projections")?);
    let form = NormWeight::Plain;
    let options = DecoderOptions {
        embedding_scale: Some((dims.hidden as f32).sqrt()),
        logit_cap: soft_cap(config, "final_logit_softcapping", Some(30.0))?,
        ..DecoderOptions::default()
    };
    let mut decoder =
        assemble("gemma3n_text", dims, weights, form, options, |weights, at, index| {
            let norm = |weights: &mut Weights, name: &str| {
                weights.norm(&format!("{at}.{name}"), hidden, dims.eps, form)
            };
            let linear = |weights: &mut Weights, name: &str, rows, columns| {
                weights.linear(&format!("{at}.{name}"), rows, columns, false)
            };
            let inner = inner[index];
            Ok(Box::new(Gemma3nBlock {
                altup: AltUp::load(weights, &format!("{at}.altup"), &dims, streams, is_scaled)?,
                input_norm: norm(weights, "input_layernorm")?,
                attention: Attention::load(weights, at, &dims, &layers[index], (bias, false))?,
                after_attention_norm: norm(weights, "post_attention_layernorm")?,
                laurel: Laurel {
                    left: linear(weights, "laurel.linear_left", rank, hidden)?,
                    right: linear(weights, "laurel.linear_right", hidden, rank)?,
                    norm: norm(weights, "laurel.post_laurel_norm")?,
                },
                feed_forward_norm: norm(weights, "pre_feedforward_layernorm")?,
                mlp: SparseMlp {
                    gate: linear(weights, "mlp.gate_proj", inner, hidden)?,
                    up: linear(weights, "mlp.up_proj", inner, hidden)?,
                    down: linear(weights, "mlp.down_proj", hidden, inner)?,
                    activation,
                    cutoff: cutoffs[index],
                    backend: weights.backend(),
                },
                after_feed_forward_norm: norm(weights, "post_feedforward_layernorm")?,
                input: LayerInput::load(weights, at, &dims, width, activation)?,
            }))
        })?;
    decoder.per_layer = Some(inputs);
    decoder.streams = Some(further);
    Ok(decoder)
}

/// How many streams there are. The first is the active one.
fn streams(config: &Config) -> Result<usize> {
    let key = "altup_active_idx";
    if let Some(other) = config.usize(key)?.filter(|&it| it != 0) {
        return Err(config.error(key, format_args!("is {other}; known is 0")));
    }
    let key = "altup_num_inputs";
    match config.usize(key)?.unwrap_or(4) {
        count @ 2..=64 => Ok(count),
        other => Err(config.error(key, format_args!("is {other}; must be from 2 to 64"))),
    }
}

/// A width for all layers, or one for each.
fn widths(config: &Config, dims: &Dims) -> Result<Vec<usize>> {
    let key = "intermediate_size";
    if config.get(key).is_some_and(|it| !it.is_array()) {
        return Ok(vec![config.size(key)?; dims.layers]);
    }
    let whole = |it: &Value| it.as_u64().filter(|&it| it > 0 && it <= i32::MAX as u64);
    let widths = config.list(key, "a list of whole numbers above 0", whole)?;
    let widths = widths.ok_or_else(|| config.error(key, "is missing"))?;
    if widths.len() != dims.layers {
        let what = format!("has {} entries for {} layers", widths.len(), dims.layers);
        return Err(config.error(key, what));
    }
    Ok(widths.into_iter().map(|it| it as usize).collect())
}

/// By how many standard deviations above the mean a gate must be to count, for each layer; `None` where all
/// count. The part of them that do not is `activation_sparsity_pattern`, were they normally distributed.
fn cutoffs(config: &Config, dims: &Dims) -> Result<Vec<Option<f32>>> {
    let key = "activation_sparsity_pattern";
    let parts = match config.get(key) {
        None => {
            let sparse = if dims.layers > 10 { 10 } else { 0 };
            (0..dims.layers).map(|layer| if layer < sparse { 0.95 } else { 0.0 }).collect()
        }
        Some(Value::Number(_)) => vec![config.f32(key)?.unwrap_or(0.0); dims.layers],
        Some(_) => {
            let number = |it: &Value| it.as_f64().map(|it| it as f32);
            config.list(key, "a list of numbers", number)?.unwrap_or_default()
        }
    };
    if parts.len() != dims.layers {
        let what = format!("has {} entries for {} layers", parts.len(), dims.layers);
        return Err(config.error(key, what));
    }
    if let Some(wrong) = parts.iter().find(|it| !(0.0..1.0).contains(*it)) {
        return Err(config.error(key, format_args!("holds {wrong}; must be from 0 to below 1")));
    }
    let cutoff = |&part: &f32| -> Result<Option<f32>> {
        if part == 0.0 {
            return Ok(None);
        }
        let root = Array::from_f32(std::f32::consts::SQRT_2);
        let inverse = erfinv(Array::from_f32(2.0 * part - 1.0))?.multiply(root)?;
        let unreadable = |e| Error::new(ErrorKind::Mlx, format!("reading a cutoff: {e}"));
        Ok(Some(inverse.try_item_exact::<f32>().map_err(unreadable)?))
    };
    parts.iter().map(cutoff).collect()
}

#[derive(Debug)]
struct Gemma3nBlock {
    altup: AltUp,
    input_norm: RmsNorm,
    attention: Attention,
    after_attention_norm: RmsNorm,
    laurel: Laurel,
    feed_forward_norm: RmsNorm,
    mlp: SparseMlp,
    after_feed_forward_norm: RmsNorm,
    input: LayerInput,
}

visit!(struct Gemma3nBlock {
    altup,
    input_norm,
    attention,
    after_attention_norm,
    laurel,
    feed_forward_norm,
    mlp,
    after_feed_forward_norm,
    input,
});

/// Learned augmented residual: `x + norm(right(left(x)))`.
#[derive(Debug)]
struct Laurel {
    left: Linear,
    right: Linear,
    norm: RmsNorm,
}

visit!(struct Laurel { left, right, norm });

impl Laurel {
    fn forward(&self, x: &Array) -> MlxResult<Array> {
        x.add(self.norm.forward(&self.right.forward(&self.left.forward(x)?)?)?)
    }
}

/// A gated layer, of whose gates only those far above the mean count.
#[derive(Debug)]
struct SparseMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
    cutoff: Option<f32>,
    backend: Backend,
}

visit!(struct SparseMlp { gate, up, down });

impl SparseMlp {
    fn forward(&self, x: &Array) -> MlxResult<Array> {
        let mut gate = self.gate.forward(x)?;
        if let Some(cutoff) = self.cutoff {
            let number = |it: f32| Array::from_f32(it).as_dtype(gate.dtype());
            let mean = mean_axis(&gate, -1, true)?;
            let centred = gate.subtract(mean)?;
            let deviation = sqrt(mean_axis(centred.square()?, -1, true)?)?;
            let above = centred.subtract(deviation.multiply(number(cutoff)?)?)?;
            gate = maximum(above, number(0.0)?)?;
        }
        self.down.forward(&self.activation.gate(&gate, &self.up.forward(x)?, self.backend)?)
    }
}

const NO_STREAMS: &str = "a block of several streams ran without them";

impl Block for Gemma3nBlock {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        let further = pass.streams.take().ok_or_else(|| Error::new(ErrorKind::Mlx, NO_STREAMS))?;
        let predicted = self.altup.predict(hidden, &further)?;
        let active = altup::first(&predicted)?;
        let x = self.input_norm.forward(&active)?;
        let mixed = self.attention.forward(layer, &x, pass)?;
        let mixed = active.add(self.after_attention_norm.forward(&mixed)?)?;
        let root = Array::from_f32(std::f32::consts::SQRT_2).as_dtype(mixed.dtype())?;
        let mixed = mixed.add(self.laurel.forward(&x)?)?.divide(root)?;
        pass.left = Some(predicted);
        // What the first half leaves takes the stream's place.
        Ok(Some(mixed.subtract(hidden)?))
    }

    fn feed_forward(
        &self,
        layer: usize,
        hidden: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Option<Array>> {
        let missing = || Error::new(ErrorKind::Mlx, NO_STREAMS);
        let predicted = pass.left.take().ok_or_else(missing)?;
        let fed = self.mlp.forward(&self.feed_forward_norm.forward(hidden)?)?;
        let active = hidden.add(self.after_feed_forward_norm.forward(&fed)?)?;
        let (first, further) = self.altup.correct(&predicted, &active)?;
        let inputs = pass.per_layer.as_ref().ok_or_else(missing)?;
        let input = per_layer::of_layer(inputs, layer)?;
        let more = self.input.forward(&self.altup.scaled(&first)?, &input)?;
        pass.streams = Some(further.add(more)?);
        Ok(Some(first.subtract(hidden)?))
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
