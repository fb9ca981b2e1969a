//! RMS norm.

use mlx_rs::{Array, Dtype, error::Result as MlxResult, fast::rms_norm, ops::rsqrt};

use crate::{Result, backend::Backend, native::Native};

/// `x / sqrt(mean(x²) + ε) · w` over the last axis (Zhang & Sennrich, 2019).
#[derive(Debug, Clone)]
pub(crate) enum RmsNorm {
    /// MLX's kernel, with `w`.
    Kernel { weight: Array, eps: f32 },
    /// Our own, with `w`.
    Native { native: Native, weight: Array, eps: f32 },
    /// `x / sqrt(sum(x²) + n·ε) · √n·w`: without the mean, and with constants of three axes, which a
    /// single token need not broadcast, 7 graph nodes where MLX's own take 11.
    Composed { weight: Array, eps: Array },
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
    pub(crate) fn new(
        weight: Array,
        eps: f32,
        stored: NormWeight,
        backend: Backend,
    ) -> Result<Self> {
        let weight = match stored {
            NormWeight::Plain => weight,
            NormWeight::Offset => {
                let dtype = weight.dtype();
                let one = Array::from_f32(1.0);
                weight.as_dtype(Dtype::Float32)?.add(one)?.as_dtype(dtype)?
            }
        };
        Ok(match backend {
            Backend::Gpu => Self::Kernel { weight: evaluated(weight)?, eps },
            Backend::Native(native) => Self::Native { native, weight: evaluated(weight)?, eps },
            Backend::Composed => {
                let size = weight.dim(-1);
                let root = Array::from_f32((size as f32).sqrt()).as_dtype(weight.dtype())?;
                let weight = weight.multiply(root)?.reshape(&[1, 1, size])?;
                let eps = Array::from_slice(&[size as f32 * eps], &[1, 1, 1]);
                Self::Composed { weight: evaluated(weight)?, eps }
            }
        })
    }

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
}

fn evaluated(array: Array) -> MlxResult<Array> {
    array.eval()?;
    Ok(array)
}
