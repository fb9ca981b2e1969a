//! RMS norm.

use mlx_rs::{Array, Dtype, error::Result, fast::rms_norm};

/// `x / sqrt(mean(x²) + ε) · w` over the last axis (Zhang & Sennrich, 2019).
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    weight: Array,
    eps: f32,
}

/// What a family's checkpoints store as the norm's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormWeight {
    /// `w` itself.
    Plain,
    /// `w - 1`: Gemma, whose norms multiply by `1 + weight`.
    Offset,
}

impl RmsNorm {
    pub(crate) fn new(weight: Array, eps: f32, stored: NormWeight) -> Result<Self> {
        let weight = match stored {
            NormWeight::Plain => weight,
            NormWeight::Offset => {
                let dtype = weight.dtype();
                let one = Array::from_f32(1.0);
                weight.as_dtype(Dtype::Float32)?.add(one)?.as_dtype(dtype)?
            }
        };
        weight.eval()?;
        Ok(Self { weight, eps })
    }

    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        rms_norm(x, Some(&self.weight), self.eps)
    }
}
