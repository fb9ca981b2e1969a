//! A sparse mixture of experts (Qwen3-MoE).

use mlx_rs::{
    Array, Dtype,
    ops::{indexing::TryIndexOp, softmax_axis},
};

use crate::{
    Result,
    activation::Activation,
    backend::Backend,
    linear::{Experts, Linear},
    weights::Weights,
};

/// A router and its experts; each token is fed to the `chosen` experts it scores highest.
#[derive(Debug)]
pub(crate) struct MixtureOfExperts {
    router: Linear,
    gate: Experts,
    up: Experts,
    down: Experts,
    chosen: i32,
    normalise: bool,
    backend: Backend,
}

/// The sizes of a mixture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MixtureDims {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) experts: usize,
    pub(crate) chosen: usize,
    /// Whether the chosen experts' weights are scaled to sum to 1 (`norm_topk_prob`).
    pub(crate) normalise: bool,
}

impl MixtureOfExperts {
    /// Loads the layer at `at` (`model.layers.3.mlp`), from HF's one tensor per expert or from
    /// mlx-lm's stacked `switch_mlp`.
    pub(crate) fn load(weights: &mut Weights, at: &str, dims: MixtureDims) -> Result<Self> {
        let MixtureDims { hidden, intermediate, experts, .. } = dims;
        let mut stack = |name, rows, columns| weights.experts(at, name, experts, rows, columns);
        let gate = stack("gate_proj", intermediate, hidden)?;
        let up = stack("up_proj", intermediate, hidden)?;
        let down = stack("down_proj", hidden, intermediate)?;
        let router = weights.linear(&format!("{at}.gate"), experts, hidden, false)?;
        let (chosen, normalise, backend) = (dims.chosen as i32, dims.normalise, weights.backend());
        Ok(Self { router, gate, up, down, chosen, normalise, backend })
    }

    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let scores = self.router.forward(x)?.as_dtype(Dtype::Float32)?;
        let scores = softmax_axis(scores, -1, true)?;
        let order = mlx_rs::ops::argpartition_axis(scores.negative()?, self.chosen - 1, -1)?;
        let chosen = order.try_index((.., .., 0..self.chosen))?;
        let mut shares = scores.take_along_axis(&chosen, -1)?;
        if self.normalise {
            shares = shares.divide(shares.sum_axis(-1, true)?)?;
        }
        let shares = shares.as_dtype(x.dtype())?.expand_dims(-1)?;

        let x = x.expand_dims_axes(&[-2, -3])?;
        let (gate, up) = (self.gate.forward(&x, &chosen)?, self.up.forward(&x, &chosen)?);
        let inner = Activation::Silu.gate(&gate, &up, self.backend)?;
        let outputs = self.down.forward(&inner, &chosen)?.squeeze_axes(&[-2])?;
        Ok(outputs.multiply(shares)?.sum_axis(-2, false)?)
    }
}
