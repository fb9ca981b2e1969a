//! The activation between a gated feed-forward layer's two halves.
//!
//! Written as plain operations: `mlx_rs::nn`'s versions are compiled functions, which MLX's CPU
//! backend builds with a C++ compiler at run time.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{erf, maximum, sigmoid, tanh},
};

use crate::{Result, backend::Backend, config::Config};

/// An activation under HF's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x · σ(x)`: `silu`.
    Silu,
    /// `x · Φ(x)`: `gelu`.
    Gelu,
    /// Its tanh approximation: `gelu_pytorch_tanh`.
    GeluTanh,
    /// `x · σ(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `max(x, 0)`: `relu`.
    Relu,
    /// `max(x, 0)²`: `relu2`.
    ReluSquared,
}

impl Activation {
    pub(crate) fn read(config: &Config, key: &str, default: &str) -> Result<Self> {
        match config.str(key)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" | "gelu_python" => Ok(Self::Gelu),
            // Five names of one formula.
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" | "gelu_accurate"
            | "gelu_python_tanh" => Ok(Self::GeluTanh),
            "quick_gelu" => Ok(Self::QuickGelu),
            "relu" => Ok(Self::Relu),
            "relu2" => Ok(Self::ReluSquared),
            other => Err(config.error(
                key,
                format_args!(
                    "is {other:?}; known are silu, gelu, gelu_pytorch_tanh, quick_gelu, relu and relu2"
                ),
            )),
        }
    }

    /// `activation(gate) · up`.
    pub(crate) fn gate(self, gate: &Array, up: &Array, backend: Backend) -> MlxResult<Array> {
        match self {
            Self::Silu => backend.silu_gate(gate, up),
            _ => self.forward(gate)?.multiply(up),
        }
    }

    /// `activation(x)`, put together from MLX's operations.
    pub(crate) fn forward(self, x: &Array) -> MlxResult<Array> {
        let number = |it: f32| Array::from_f32(it).as_dtype(x.dtype());
        match self {
            Self::Silu => x.multiply(sigmoid(x)?),
            Self::QuickGelu => x.multiply(sigmoid(x.multiply(number(1.702)?)?)?),
            Self::Relu => maximum(x, number(0.0)?),
            Self::ReluSquared => maximum(x, number(0.0)?)?.square(),
            Self::Gelu => {
                let upper = erf(x.multiply(number(FRAC_1_SQRT_2)?)?)?.add(number(1.0)?)?;
                x.multiply(upper)?.multiply(number(0.5)?)
            }
            Self::GeluTanh => {
                let cubic = x.square()?.multiply(number(0.044_715)?)?.add(number(1.0)?)?;
                let inner = x.multiply(cubic)?.multiply(number(FRAC_2_PI.sqrt())?)?;
                x.multiply(tanh(inner)?.add(number(1.0)?)?)?.multiply(number(0.5)?)
            }
        }
    }
}
