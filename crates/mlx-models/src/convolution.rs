//! The short causal convolution in front of a recurrence, or in place of one.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{concatenate, indexing::TryIndexOp, zeros_dtype},
};

use crate::{
    Result,
    activation::Activation,
    backend::Backend,
    parameters::{Tensor, visit},
    weights::Weights,
};

/// `y_t = b + Σ_i w_i · x_{t - width + 1 + i}`, for each channel by itself; what came before the first
/// token is 0.
#[derive(Debug)]
pub(crate) struct CausalConvolution {
    /// Computed with as `[width, channels]`.
    weight: Tensor,
    bias: Option<Tensor>,
    width: i32,
    backend: Backend,
}

visit!(struct CausalConvolution { weight, bias });

impl CausalConvolution {
    /// Loads the weights at `at` (`model.layers.3.linear_attn.conv1d`): `[channels, 1, width]` as torch
    /// has them, or `[channels, width, 1]` as MLX does.
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        channels: usize,
        width: usize,
        bias: bool,
    ) -> Result<Self> {
        let name = format!("{at}.weight");
        let shape = match weights.shape(&name) {
            Some(&[.., 1]) => [channels, width, 1],
            _ => [channels, 1, width],
        };
        let weight = weights
            .derived(&name, &shape, false, |it| it.reshape(&[it.dim(0), -1])?.t().contiguous())?;
        let bias =
            if bias { Some(weights.tensor(&format!("{at}.bias"), &[channels])?) } else { None };
        Ok(Self { weight, bias, width: width as i32, backend: weights.backend() })
    }

    /// `x` is `[batch, tokens, channels]` with left padding set to 0, `before` what the call before
    /// returned second: the last inputs, `[batch, width - 1, channels]`. The results go through
    /// `activation`.
    pub(crate) fn forward(
        &self,
        x: &Array,
        before: Option<&Array>,
        activation: Option<Activation>,
    ) -> MlxResult<(Array, Array)> {
        let (tokens, seen) = (x.dim(1), self.width - 1);
        let start = match before {
            Some(before) => before.clone(),
            None => zeros_dtype(&[x.dim(0), seen, x.dim(2)], x.dtype())?,
        };
        let (weight, bias) = (self.weight.array(), self.bias.as_ref().map(Tensor::array));
        let y = self.backend.causal_convolution(x, &start, weight, bias, activation)?;
        let last = if tokens < seen {
            concatenate(&[&start, x], 1)?.try_index((.., tokens.., ..))?
        } else {
            x.try_index((.., tokens - seen.., ..))?
        };
        // A copy: a view would keep all of the inputs in memory.
        Ok((y, last.contiguous()?))
    }
}

/// The convolution in MLX's operations: `weight` is `[width, channels]`, and `before` as many inputs less one.
pub(crate) fn composed(
    x: &Array,
    before: &Array,
    weight: &Array,
    bias: Option<&Array>,
) -> MlxResult<Array> {
    let tokens = x.dim(1);
    let all = concatenate(&[before, x], 1)?;
    let y = if tokens == 1 {
        all.multiply(weight)?.sum_axis(1, true)?
    } else {
        let tap =
            |at: i32| all.try_index((.., at..at + tokens, ..))?.multiply(weight.try_index(at)?);
        (1..weight.dim(0)).try_fold(tap(0)?, |sum, at| sum.add(tap(at)?))?
    };
    match bias {
        None => Ok(y),
        Some(bias) => y.add(bias),
    }
}
