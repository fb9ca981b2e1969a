//! What the default device can do: the one place that picks MLX's kernels, operations of our own, or
//! MLX's operations put together.

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    fast::{ScaledDotProductAttentionMask, rms_norm, scaled_dot_product_attention},
    ops::{logsumexp_axis, rsqrt, sigmoid},
};
use mlxgk_kv_cache::{Columns, Mask, Seen};

use crate::{
    Result,
    activation::Activation,
    attention::{self, Softmax},
    convolution, device,
    native::{Native, Packed, Quantization},
    recurrence::{self, Tokens},
    rope,
    routing::{self, Routing},
};

/// How a model's rotations, norms, gates, attention and weight products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backend(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// By MLX's kernels.
    Gpu,
    /// By operations of our own.
    Native(Native),
    /// By MLX's operations, composed so that they are few: on the CPU it has no kernels for these, and
    /// puts them together from a dozen to thirty operations each.
    Composed,
}

impl Backend {
    /// For a model that computes in `dtype` on the default device.
    pub(crate) fn new(dtype: Dtype) -> Result<Self> {
        if device::is_gpu()? {
            return Ok(Self(Kind::Gpu));
        }
        let native = Native::new().filter(|_| dtype == Dtype::Float32);
        Ok(Self(native.map_or(Kind::Composed, Kind::Native)))
    }

    /// The operations of our own, where they are used: bf16 weights and scales stay as they are stored
    /// there, and are widened as they are read.
    pub(crate) fn native(self) -> Option<Native> {
        match self.0 {
            Kind::Native(native) => Some(native),
            Kind::Gpu | Kind::Composed => None,
        }
    }

    /// Softmax attention with grouped key/value heads, as [`attention`](attention::attention) describes
    /// it. MLX's kernel has no soft cap and takes no packed columns, the native operations have no sinks.
    pub(crate) fn attention(
        self,
        queries: &Array,
        seen: &Seen,
        softmax: Softmax<'_>,
    ) -> Result<Array> {
        let Softmax { scale, soft_cap, sinks } = softmax;
        let mask = || match &seen.mask {
            Mask::None => None,
            Mask::Causal => Some(ScaledDotProductAttentionMask::Causal),
            Mask::Array(it) => Some(ScaledDotProductAttentionMask::Array(it)),
        };
        if let (Kind::Native(native), None) = (self.0, sinks)
            && let (Some(keys), Some(values)) = (packed(&seen.keys)?, packed(&seen.values)?)
        {
            let (mask, cap) = (mask(), soft_cap);
            return Ok(native.packed_attention(queries, &keys, &values, scale, mask, cap)?);
        }
        let (keys, values) = (seen.keys.dense()?, seen.values.dense()?);
        Ok(match self.0 {
            Kind::Native(native) if sinks.is_none() => {
                native.attention(queries, &keys, &values, scale, mask(), soft_cap)?
            }
            Kind::Gpu if soft_cap.is_none() => {
                scaled_dot_product_attention(queries, &keys, &values, scale, mask(), sinks)?
            }
            _ => attention::composed(queries, &keys, &values, &seen.mask, softmax)?,
        })
    }

    /// What [`Norm::forward`] computes with, for a weight of `[size]`.
    pub(crate) fn norm(self, weight: Array, eps: f32) -> MlxResult<Norm> {
        Ok(match self.0 {
            Kind::Gpu => Norm::Kernel { weight, eps },
            Kind::Native(native) => Norm::Native { native, weight, eps },
            Kind::Composed => {
                let size = weight.dim(-1);
                let root = Array::from_f32((size as f32).sqrt()).as_dtype(weight.dtype())?;
                let weight = weight.multiply(root)?.reshape(&[1, 1, size])?;
                let eps = Array::from_slice(&[size as f32 * eps], &[1, 1, 1]);
                Norm::Composed { weight, eps }
            }
        })
    }

    /// Rotates the first dimensions of `x`, `[batch, heads, tokens, head_dim]`, by tables of cosines and
    /// sines: see [`Rotation::Table`](rope::Rotation).
    pub(crate) fn rotate(self, x: &Array, cos: &Array, sin: &Array) -> MlxResult<Array> {
        match self.0 {
            Kind::Native(native) => native.rotate(x, cos, sin),
            Kind::Gpu | Kind::Composed => rope::rotate(x, cos, sin),
        }
    }

    /// Heads of `dim` of queries and keys, `[batch, tokens, heads · dim]` each, through their norms and rotated
    /// as [`rotate`](Self::rotate) does, as `[batch, heads, tokens, dim]`; `None` where that is not one operation.
    pub(crate) fn turned_heads(
        self,
        queries_keys: [&Array; 2],
        norms: Option<[&Norm; 2]>,
        [cos, sin]: [&Array; 2],
        dim: i32,
    ) -> MlxResult<Option<[Array; 2]>> {
        let Kind::Native(native) = self.0 else { return Ok(None) };
        let norms = match norms {
            None => None,
            Some(
                [
                    Norm::Native { weight: one, eps, .. },
                    Norm::Native { weight: other, eps: same, .. },
                ],
            ) if eps == same => Some(([one, other], *eps)),
            Some(_) => return Ok(None),
        };
        native.turned_heads(queries_keys, norms, cos, sin, dim).map(Some)
    }

    /// A causal convolution of each channel by itself, as
    /// [`CausalConvolution`](crate::convolution::CausalConvolution) describes it, and an activation.
    pub(crate) fn causal_convolution(
        self,
        x: &Array,
        before: &Array,
        weight: &Array,
        bias: Option<&Array>,
        activation: Option<Activation>,
    ) -> MlxResult<Array> {
        let (y, rest) = match self.0 {
            Kind::Native(native) => {
                let silu = activation == Some(Activation::Silu);
                let y = native.causal_convolution(x, before, weight, bias, silu)?;
                (y, activation.filter(|_| !silu))
            }
            Kind::Gpu | Kind::Composed => {
                (convolution::composed(x, before, weight, bias)?, activation)
            }
        };
        match rest {
            None => Ok(y),
            Some(activation) => activation.forward(&y),
        }
    }

    /// What [`recurrence::composed`] computes. Gradients go through its chunks, where they are wanted.
    pub(crate) fn recur(
        self,
        tokens: &Tokens,
        state: &Array,
        gradients: bool,
    ) -> MlxResult<(Array, Array)> {
        let native = match self.0 {
            Kind::Native(native) if !gradients => native,
            _ => return recurrence::composed(tokens, state),
        };
        let Tokens { queries, keys, values, log_decays, rates, unit } = tokens;
        let heads = values.dim(2);
        let by_head = state.reshape(&[state.dim(0), heads, state.dim(3), state.dim(4)])?;
        let [outputs, end] = native.recurrence(
            [queries, keys, values],
            log_decays,
            rates.as_ref(),
            &by_head,
            *unit,
        )?;
        Ok((outputs, end.reshape(state.shape())?))
    }

    /// What [`routing::composed`] computes.
    pub(crate) fn route(
        self,
        routing: &Routing,
        logits: Array,
        correction: Option<&Array>,
    ) -> MlxResult<(Array, Array)> {
        match self.0 {
            Kind::Native(native) => native.route(&logits, correction, routing),
            Kind::Gpu | Kind::Composed => routing::composed(routing, logits, correction),
        }
    }

    /// `silu(gate) · up`.
    pub(crate) fn silu_gate(self, gate: &Array, up: &Array) -> MlxResult<Array> {
        match self.0 {
            Kind::Native(native) => native.silu_gate(gate, up),
            Kind::Gpu | Kind::Composed => Activation::Silu.forward(gate)?.multiply(up),
        }
    }

    /// `σ(gate) · x`, for arrays of one shape.
    pub(crate) fn sigmoid_gate(self, gate: &Array, x: &Array) -> MlxResult<Array> {
        match self.0 {
            Kind::Native(native) => native.sigmoid_gate(gate, x),
            Kind::Gpu | Kind::Composed => x.multiply(sigmoid(gate)?),
        }
    }

    /// The log-probability of one id per row: see [`token_logprobs`](crate::token_logprobs).
    pub(crate) fn token_logprobs(self, logits: &Array, ids: &Array) -> MlxResult<Array> {
        if let Kind::Native(native) = self.0 {
            return native.token_logprobs(logits, ids);
        }
        let chosen = logits.take_along_axis(ids.expand_dims(-1)?, -1)?;
        chosen.subtract(logsumexp_axis(logits, -1, true)?)?.squeeze_axes(&[-1])
    }

    /// `x Wᵀ` for `x` of `[.., in]` and packed weights.
    pub(crate) fn packed_product(self, x: &Array, weight: &Packed) -> MlxResult<Array> {
        match self.0 {
            Kind::Native(native) => native.packed_product(x, weight),
            Kind::Gpu | Kind::Composed => weight.product(x),
        }
    }

    /// `x W[chosen]ᵀ`, one packed matrix per entry of `chosen`.
    pub(crate) fn gathered_packed_product(
        self,
        x: &Array,
        weight: &Packed,
        chosen: &Array,
    ) -> MlxResult<Array> {
        match self.0 {
            Kind::Native(native) => native.gathered_packed_product(x, weight, chosen),
            Kind::Gpu | Kind::Composed => weight.gathered_product(x, chosen),
        }
    }
}

/// Columns as the native operation takes them; `None` where they are not packed.
fn packed(columns: &Columns) -> MlxResult<Option<Packed>> {
    let Columns::Quantized(it) = columns else { return Ok(None) };
    let Some(how) = Quantization::affine(it.group_size, it.bits) else { return Ok(None) };
    let [words, scales, biases] = [&it.packed, &it.scales, &it.biases].map(Array::clone);
    Packed::new(words, scales, Some(biases), how).map(Some)
}

/// How an RMS norm is computed, with the weight that takes.
#[derive(Debug, Clone)]
pub(crate) enum Norm {
    /// MLX's kernel, with `w`.
    Kernel { weight: Array, eps: f32 },
    /// Our own, with `w`.
    Native { native: Native, weight: Array, eps: f32 },
    /// `x / sqrt(sum(x²) + n·ε) · √n·w`: without the mean, and with constants of three axes, which a
    /// single token need not broadcast, 7 graph nodes where MLX's own take 11.
    Composed { weight: Array, eps: Array },
}

impl Norm {
    /// `x / sqrt(mean(x²) + ε) · w` over the last axis.
    pub(crate) fn forward(&self, x: &Array) -> MlxResult<Array> {
        match self {
            Self::Kernel { weight, eps } => rms_norm(x, Some(weight), *eps),
            Self::Native { native, weight, eps } => native.rms_norm(x, weight, *eps),
            Self::Composed { weight, eps } => {
                let wide = x.as_dtype(Dtype::Float32)?;
                let norm = wide.square()?.sum_axis(-1, true)?.add(eps)?;
                wide.multiply(rsqrt(norm)?)?.as_dtype(x.dtype())?.multiply(weight)
            }
        }
    }

    /// The weight in the form that is computed with.
    pub(crate) fn weight(&self) -> &Array {
        match self {
            Self::Kernel { weight, .. }
            | Self::Native { weight, .. }
            | Self::Composed { weight, .. } => weight,
        }
    }
}
