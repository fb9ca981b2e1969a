//! Rotary position embeddings and their scaled variants (HF `modeling_rope_utils`).
//!
//! HF's inverse frequencies are computed here. On a GPU they go to MLX's kernel, as periods. The CPU
//! backend has no such kernel: it spends 29 graph nodes on every call, a third of a small model's
//! time. There a step's cosines and sines are tabulated once, as HF does, and shared by all layers.

use std::{f64::consts::PI, sync::Arc};

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    fast::{rope, rope_dynamic},
    ops::{
        concatenate,
        indexing::{Ellipsis, IntoStrideBy, TryIndexOp},
    },
};
use mlxgk_kv_cache::{Positions, Step};
use serde_json::Value;

use crate::{Error, ErrorKind, Result, backend::Backend, config::Config, device};

/// One rotary embedding; layers of one kind share it.
#[derive(Debug, Clone)]
pub(crate) struct Rope(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    /// How many leading dimensions of each head are rotated.
    dims: usize,
    head_dim: usize,
    frequencies: Frequencies,
    /// Whether neighbouring dimensions are a pair, instead of one from each half.
    interleaved: bool,
    /// HF's `attention_scaling`, on the rotated dimensions.
    attention_scale: f32,
    /// Whether MLX rotates in one kernel.
    fused: bool,
    /// The longest text that it is for, where a longer one would be rotated by how it was fed (dynamic).
    longest: Option<usize>,
}

impl Rope {
    /// Keys that were rotated for their positions, `[1, heads, columns, head_dim]`, as they are `by`
    /// positions further: rotations add up. The attention scale is in them already. `None` where MLX's
    /// kernel has left neighbouring dimensions as the pairs.
    pub(crate) fn turned(&self, keys: &Array, by: i32) -> Option<MlxResult<Array>> {
        let Parts { dims, ref frequencies, interleaved, fused, .. } = *self.0;
        if interleaved && fused {
            return None;
        }
        let (Frequencies::One(inverse) | Frequencies::Long { short: inverse, .. }) = frequencies;
        // One angle per pair of dimensions, for all columns.
        let angles = || inverse.iter().map(|it| by as f32 * it);
        let cos: Vec<f32> = angles().map(f32::cos).collect();
        let sin: Vec<f32> = angles().map(|it| -it.sin()).chain(angles().map(f32::sin)).collect();
        let half = dims as i32 / 2;
        let cos = Array::from_slice(&cos, &[1, 1, 1, 1, half]);
        let sin = Array::from_slice(&sin, &[1, 1, 1, 2, half]);
        // Elsewhere rotated keys have one of a pair in each half, whatever the checkpoint's pairs are.
        Some(rotate(keys, &cos, &sin))
    }

    /// What it rotates by, as a text: digits that differ between platforms are left out.
    pub(crate) fn settings(&self) -> String {
        let Parts { dims, frequencies, attention_scale, interleaved, .. } = &*self.0;
        let shown = |it: &[f32]| it.iter().map(|it| format!("{it:.4e} ")).collect::<String>();
        let frequencies = match frequencies {
            Frequencies::One(all) => shown(all),
            Frequencies::Long { short, long } => format!("{}/ {}", shown(short), shown(long)),
        };
        format!("{dims} {attention_scale:.4e} {interleaved} {frequencies}")
    }
}

/// HF's `inv_freq`, one per pair of dimensions.
#[derive(Debug)]
enum Frequencies {
    One(Vec<f32>),
    /// Phi-3's longrope: others once the sequence exceeds the original context.
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
    },
}

/// What one embedding does to the tokens of a step, in every layer.
#[derive(Debug, Clone)]
pub(crate) enum Rotation {
    Kernel {
        dims: i32,
        interleaved: bool,
        /// `1 / inv_freq`, `[dims / 2]`.
        periods: Array,
        positions: Positions,
        /// `[head_dim]`: the attention scale on the rotated dimensions, 1 elsewhere.
        scale: Option<Array>,
    },
    /// Cosines `[.., tokens, 1, dims / 2]`, and sines with their sign `[.., tokens, 2, dims / 2]`; one
    /// leading row for all, or one per row of the batch.
    Table { cos: Array, sin: Array, interleaved: bool },
}

/// A rotary embedding's parameters, gathered from the old form (`rope_theta`, `rope_scaling`) or the
/// 5.x form (`rope_parameters`).
#[derive(Debug)]
pub(crate) struct RopeParameters {
    pub(crate) kind: String,
    pub(crate) theta: f64,
    pub(crate) max_positions: usize,
    /// The context before scaling (`original_max_position_embeddings`).
    pub(crate) original: usize,
    /// The part of each head that is rotated, or of its pairs.
    part: f64,
    /// Whether the graph can read a text again that outgrows the original context, as longrope takes.
    pub(crate) reads_again: bool,
    /// The dictionary the scaled kinds read their factors from.
    scaling: Config,
}

impl RopeParameters {
    /// As HF standardises them: a `rope_scaling` that is not empty replaces `rope_parameters`, and
    /// a theta inside it wins over the one beside it.
    pub(crate) fn read(config: &Config, max_positions: usize) -> Result<Self> {
        Self::with_default(config, max_positions, 10_000.0)
    }

    /// As [`read`](Self::read), for a family whose theta is another where the config has none.
    pub(crate) fn with_default(config: &Config, max_positions: usize, theta: f64) -> Result<Self> {
        let scaling = match config.object("rope_scaling")? {
            Some(it) if it.entries().next().is_some() => Some(it),
            _ => config.object("rope_parameters")?,
        };
        let theta = config.positive("rope_theta")?.unwrap_or(theta);
        Self::new(config, scaling, theta, max_positions)
    }

    /// From a given dictionary, for families that keep one per layer type. A theta inside it wins;
    /// for the original context the top level wins, and without either the context is original.
    pub(crate) fn new(
        config: &Config,
        scaling: Option<Config>,
        theta: f64,
        max_positions: usize,
    ) -> Result<Self> {
        let scaling = scaling.unwrap_or_else(|| config.empty("rope_parameters"));
        let kind = scaling.str("rope_type")?.or(scaling.str("type")?).unwrap_or("default");
        let key = "original_max_position_embeddings";
        let original = config.usize(key)?.or(scaling.usize(key)?).unwrap_or(max_positions);
        let theta = scaling.positive("rope_theta")?.unwrap_or(theta);
        let part = scaling.f64("partial_rotary_factor")?.unwrap_or(1.0);
        Ok(Self {
            kind: kind.to_owned(),
            theta,
            max_positions,
            original,
            part,
            reads_again: false,
            scaling,
        })
    }

    /// How many dimensions of heads of `dim` are rotated: a part of `partial_rotary_factor`, from the
    /// dictionary, else from the top level, else of `default`. All of them where the embedding is
    /// proportional, of which it is the pairs that turn.
    pub(crate) fn rotated(&mut self, config: &Config, dim: usize, default: f64) -> Result<usize> {
        let key = "partial_rotary_factor";
        self.part = self.scaling.f64(key)?.or(config.f64(key)?).unwrap_or(default);
        Ok(if self.kind == "proportional" { dim } else { (dim as f64 * self.part) as usize })
    }

    /// The dictionary that the factors are read from.
    pub(crate) fn scaling(&self) -> &Config {
        &self.scaling
    }
}

impl Rope {
    /// Builds the embedding for heads of `head_dim`, of which the first `dims` are rotated, each with
    /// the one half of them further on.
    pub(crate) fn new(parameters: &RopeParameters, head_dim: usize, dims: usize) -> Result<Self> {
        Self::build(parameters, head_dim, dims, false)
    }

    /// As [`new`](Self::new), but each even dimension is rotated with the next (GLM, Cohere, DeepSeek).
    /// Where this takes a table, heads leave it with their even dimensions in front of the odd ones,
    /// queries and keys alike, which their products do not show.
    pub(crate) fn interleaved(
        parameters: &RopeParameters,
        head_dim: usize,
        dims: usize,
    ) -> Result<Self> {
        Self::build(parameters, head_dim, dims, true)
    }

    fn build(
        parameters: &RopeParameters,
        head_dim: usize,
        dims: usize,
        interleaved: bool,
    ) -> Result<Self> {
        let scaling = &parameters.scaling;
        if dims == 0 || !dims.is_multiple_of(2) || dims > head_dim {
            let what = format!("rotates {dims} of {head_dim} head dimensions; must be even");
            return Err(scaling.error("partial_rotary_factor", what));
        }
        // In fp32 throughout, as torch computes them: a thousand positions on, the last bit of a
        // frequency shows in the log-probabilities.
        let plain = |factor: f64| {
            let exponent = |pair: usize| (2 * pair) as f32 / dims as f32;
            let inverse =
                |pair| 1.0 / (parameters.theta as f32).powf(exponent(pair)) / factor as f32;
            Frequencies::One((0..dims / 2).map(inverse).collect())
        };
        let (frequencies, scale) = match parameters.kind.as_str() {
            "default" | "dynamic" => (plain(1.0), 1.0),
            "linear" => (plain(scaling.require("factor", Config::positive)?), 1.0),
            "llama3" => (llama3(parameters, dims)?, 1.0),
            "yarn" => yarn(parameters, dims)?,
            "longrope" if parameters.reads_again => longrope(parameters, dims)?,
            "proportional" => (proportional(parameters, dims)?, 1.0),
            other => {
                let known =
                    "default, linear, dynamic, llama3, yarn and proportional, and longrope of phi3";
                let what = format_args!("is {other:?}; known are {known}");
                return Err(scaling.error("rope_type", what));
            }
        };
        let (attention_scale, fused) = (scale as f32, device::is_gpu()?);
        let longest = (parameters.kind == "dynamic").then_some(parameters.max_positions);
        let parts =
            Parts { dims, head_dim, frequencies, interleaved, attention_scale, fused, longest };
        Ok(Self(Arc::new(parts)))
    }

    /// Whether the frequencies change beyond the original context.
    pub(crate) fn is_long(&self) -> bool {
        matches!(self.0.frequencies, Frequencies::Long { .. })
    }

    /// Whether the two are one embedding.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Refuses a step that goes beyond the longest text.
    ///
    /// In HF a dynamic embedding changes its frequencies with every token beyond, for that token alone:
    /// what a model says then depends on which tokens were fed together.
    pub(crate) fn check(&self, step: &Step) -> Result<()> {
        let end = step.start() + step.count();
        let length = step.padding().iter().map(|it| end.saturating_sub(*it)).max().unwrap_or(end);
        match self.0.longest {
            Some(longest) if length > longest => {
                let what = format!(
                    "a text of {length} tokens, where the `rope_type` \"dynamic\" is supported up to \
                     `max_position_embeddings`, {longest}"
                );
                Err(Error::new(ErrorKind::Tokens, what))
            }
            _ => Ok(()),
        }
    }

    /// What a step's tokens are rotated by. `long` says whether the sequence, this step included,
    /// exceeds the original context (longrope only).
    pub(crate) fn rotation(&self, step: &Step, long: bool) -> MlxResult<Rotation> {
        let Parts { dims, head_dim, interleaved, attention_scale, .. } = *self.0;
        let inverse = match &self.0.frequencies {
            Frequencies::Long { long: inverse, .. } if long => inverse,
            Frequencies::One(inverse) | Frequencies::Long { short: inverse, .. } => inverse,
        };
        if self.0.fused {
            let per_dim = |it| if it < dims { attention_scale } else { 1.0 };
            return Ok(Rotation::Kernel {
                dims: dims as i32,
                interleaved,
                periods: Array::from_iter(inverse.iter().map(|it| 1.0 / it), &[dims as i32 / 2]),
                positions: step.positions().clone(),
                scale: (attention_scale != 1.0)
                    .then(|| Array::from_iter((0..head_dim).map(per_dim), &[head_dim as i32])),
            });
        }
        let rows = match step.positions() {
            Positions::Same(_) => &step.padding()[..1],
            Positions::PerRow(_) => step.padding(),
        };
        let cells = rows.len() * step.count() * dims / 2;
        let (mut cos, mut sin) = (Vec::with_capacity(cells), Vec::with_capacity(2 * cells));
        for &padding in rows {
            for column in step.start()..step.start() + step.count() {
                let position = column as f32 - padding as f32;
                let angles = || inverse.iter().map(|it| position * it);
                cos.extend(angles().map(|it| it.cos() * attention_scale));
                sin.extend(angles().map(|it| -it.sin() * attention_scale));
                sin.extend_from_within(sin.len() - inverse.len()..);
                let plus = sin.len() - inverse.len();
                sin[plus..].iter_mut().for_each(|it| *it = -*it);
            }
        }
        let shape = |halves| [rows.len(), 1, step.count(), halves, dims / 2].map(|it| it as i32);
        Ok(Rotation::Table {
            cos: Array::from_slice(&cos, &shape(1)),
            sin: Array::from_slice(&sin, &shape(2)),
            interleaved,
        })
    }
}

impl Rotation {
    /// Rotates `x`, `[batch, heads, tokens, head_dim]`.
    pub(crate) fn apply(&self, x: &Array, backend: Backend) -> MlxResult<Array> {
        match self {
            Self::Kernel { dims, interleaved, periods, positions, scale } => {
                let scaled = scale.as_ref().map(|it| x.multiply(it.as_dtype(x.dtype())?));
                let scaled = scaled.transpose()?;
                let x = scaled.as_ref().unwrap_or(x);
                match positions {
                    Positions::Same(at) => {
                        rope(x, *dims, *interleaved, None, 1.0, *at, Some(periods))
                    }
                    Positions::PerRow(at) => {
                        rope_dynamic(x, *dims, *interleaved, None, 1.0, at, Some(periods))
                    }
                }
            }
            Self::Table { cos, sin, interleaved } => {
                let sorted = interleaved.then(|| evens_first(x, 2 * cos.dim(4))).transpose()?;
                let x = sorted.as_ref().unwrap_or(x);
                backend.rotate(x, cos, sin)
            }
        }
    }
}

/// Rotates the first dimensions of `x` by tables, put together from MLX's operations.
pub(crate) fn rotate(x: &Array, cos: &Array, sin: &Array) -> MlxResult<Array> {
    let (head_dim, half) = (x.dim(3), cos.dim(4));
    if 2 * half == head_dim {
        return turn(x, cos, sin);
    }
    let turned = turn(&x.try_index((Ellipsis, ..2 * half))?, cos, sin)?;
    concatenate(&[&turned, &x.try_index((Ellipsis, 2 * half..))?], -1)
}

/// `x · cos + rotate_half(x) · sin`, with the halves of `x` on an axis of their own: to rotate is to
/// walk that axis backwards, which copies nothing.
fn turn(x: &Array, cos: &Array, sin: &Array) -> MlxResult<Array> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let half = cos.dim(4);
    let halves = x.reshape(&[shape[0], shape[1], shape[2], 2, half])?;
    let swapped = halves.try_index((Ellipsis, (..).stride_by(-1), ..))?;
    let convert =
        |it: &Array| if dtype == Dtype::Float32 { Ok(it.clone()) } else { it.as_dtype(dtype) };
    let turned = halves.multiply(convert(cos)?)?.add(swapped.multiply(convert(sin)?)?)?;
    turned.reshape(shape)
}

/// `x` with the even ones of its first `dims` dimensions in front of the odd ones.
fn evens_first(x: &Array, dims: i32) -> MlxResult<Array> {
    let [batch, heads, tokens, head_dim] = [0, 1, 2, 3].map(|axis| x.dim(axis));
    let rotated = if dims == head_dim { x.clone() } else { x.try_index((Ellipsis, ..dims))? };
    let pairs = rotated.reshape(&[batch, heads, tokens, dims / 2, 2])?;
    let sorted = pairs.swap_axes(-1, -2)?.reshape(&[batch, heads, tokens, dims])?;
    if dims == head_dim {
        return Ok(sorted);
    }
    concatenate(&[&sorted, &x.try_index((Ellipsis, dims..))?], -1)
}

/// `base^(2i/dims)`: the period over 2π of dimension pair i.
fn period(theta: f64, dims: usize, pair: usize) -> f64 {
    theta.powf(2.0 * pair as f64 / dims as f64)
}

/// Llama 3.1's scaling: long wavelengths are stretched by `factor`, short ones kept, those between
/// blended (HF `_compute_llama3_parameters`).
fn llama3(parameters: &RopeParameters, dims: usize) -> Result<Frequencies> {
    let (scaling, theta) = (&parameters.scaling, parameters.theta);
    let factor = scaling.require("factor", Config::positive)?;
    let low = scaling.require("low_freq_factor", Config::f64)?;
    let high = scaling.require("high_freq_factor", Config::f64)?;
    let original = parameters.original as f64;
    let inverse = (0..dims / 2).map(|pair| {
        let inverse = 1.0 / period(theta, dims, pair);
        let wavelength = 2.0 * PI / inverse;
        if wavelength > original / low {
            inverse / factor
        } else if wavelength < original / high {
            inverse
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * inverse / factor + smooth * inverse
        }
    });
    Ok(Frequencies::One(inverse.map(|it| it as f32).collect()))
}

/// YaRN (Peng et al., 2023), as HF `_compute_yarn_parameters` reads it.
fn yarn(parameters: &RopeParameters, dims: usize) -> Result<(Frequencies, f64)> {
    let (scaling, theta) = (&parameters.scaling, parameters.theta);
    let original = parameters.original as f64;
    let factor = scaling.positive("factor")?.unwrap_or(parameters.max_positions as f64 / original);
    let magnitude =
        |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
    let truthy = |it: Option<f64>| it.filter(|&it| it != 0.0);
    let both = truthy(scaling.f64("mscale")?).zip(truthy(scaling.f64("mscale_all_dim")?));
    let attention_scale = match (scaling.f64("attention_factor")?, both) {
        (Some(given), _) => given,
        (None, Some((m, all))) => magnitude(factor, m) / magnitude(factor, all),
        (None, None) => magnitude(factor, 1.0),
    };
    let beta_fast = truthy(scaling.f64("beta_fast")?).unwrap_or(32.0);
    let beta_slow = truthy(scaling.f64("beta_slow")?).unwrap_or(1.0);
    let correction = |rotations: f64| {
        dims as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
    if scaling.bool("truncate")?.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    let inverse = (0..dims / 2).map(|pair| {
        let extrapolated = 1.0 / period(theta, dims, pair);
        let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        extrapolated / factor * ramp + extrapolated * (1.0 - ramp)
    });
    Ok((Frequencies::One(inverse.map(|it| it as f32).collect()), attention_scale))
}

/// Gemma 4's: the pairs after a part of them stay as they are (HF
/// `_compute_proportional_rope_parameters`).
fn proportional(parameters: &RopeParameters, dims: usize) -> Result<Frequencies> {
    let scaling = &parameters.scaling;
    let factor = scaling.positive("factor")?.unwrap_or(1.0);
    let part = parameters.part;
    if !(0.0..=1.0).contains(&part) {
        return Err(scaling.error("partial_rotary_factor", format_args!("is {part}; at most 1")));
    }
    let turned = (part * dims as f64 / 2.0) as usize;
    let inverse = |pair: usize| {
        let exponent = (2 * pair) as f32 / dims as f32;
        1.0 / (parameters.theta as f32).powf(exponent) / factor as f32
    };
    let inverse = (0..dims / 2).map(|pair| if pair < turned { inverse(pair) } else { 0.0 });
    Ok(Frequencies::One(inverse.collect()))
}

/// LongRoPE (Ding et al., 2024), as HF `_compute_longrope_parameters` reads it.
fn longrope(parameters: &RopeParameters, dims: usize) -> Result<(Frequencies, f64)> {
    let (scaling, theta) = (&parameters.scaling, parameters.theta);
    let original = parameters.original as f64;
    let factors = |key: &str| {
        let read =
            |config: &Config, key: &str| config.list(key, "a list of numbers", Value::as_f64);
        let factors = scaling.require(key, read)?;
        if factors.len() != dims / 2 {
            let what = format!("has {} entries, not {}", factors.len(), dims / 2);
            return Err(scaling.error(key, what));
        }
        let inverse = |(pair, factor)| (1.0 / (factor * period(theta, dims, pair))) as f32;
        Ok(factors.into_iter().enumerate().map(inverse).collect())
    };
    let factor = scaling.positive("factor")?.unwrap_or(parameters.max_positions as f64 / original);
    let attention_scale = match scaling.f64("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    let frequencies =
        Frequencies::Long { short: factors("short_factor")?, long: factors("long_factor")? };
    Ok((frequencies, attention_scale))
}
