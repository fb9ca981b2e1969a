//! Alternating updates: what a block will do to each stream is predicted from all of them; it computes the
//! first, and by how far that was off the others are corrected.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{indexing::TryIndexOp, stack, tanh},
};

use super::super::prelude::*;
use crate::{
    linear::Linear,
    norm::RmsNorm,
    parameters::{Tensor, visit},
};

#[derive(Debug)]
pub(super) struct AltUp {
    router: Linear,
    router_norm: RmsNorm,
    prediction: Linear,
    correction: Linear,
    /// `[hidden]`.
    scale: Tensor,
    is_scaled: bool,
    hidden: Array,
    streams: i32,
}

visit!(struct AltUp { router, router_norm, prediction, correction, scale });

/// The first of several streams, `[streams, ..]`.
pub(super) fn first(streams: &Array) -> MlxResult<Array> {
    streams.try_index(0)
}

impl AltUp {
    /// Loads the part at `at` (`model.layers.3.altup`).
    pub(super) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        streams: usize,
        is_scaled: bool,
    ) -> Result<Self> {
        let name = |it: &str| format!("{at}.{it}");
        let hidden = dims.hidden;
        let norm = name("router_norm");
        let factor = Array::from_f32(1.0 / hidden as f32).as_dtype(weights.dtype())?;
        factor.eval()?;
        Ok(Self {
            router: weights.linear(&name("modality_router"), streams, hidden, false)?,
            router_norm: weights.norm(&norm, hidden, dims.eps, NormWeight::Plain)?,
            prediction: {
                let rows = streams * streams;
                weights.linear(&name("prediction_coefs"), rows, streams, false)?
            },
            correction: weights.linear(&name("correction_coefs"), streams, streams, false)?,
            scale: weights.tensor(&name("correct_output_scale"), &[hidden])?,
            is_scaled,
            hidden: factor,
            streams: streams as i32,
        })
    }

    /// `[batch, tokens, streams]`, by the first stream.
    fn modalities(&self, first: &Array) -> MlxResult<Array> {
        let normed = self.router_norm.forward(first)?.multiply(&self.hidden)?;
        tanh(self.router.forward(&normed)?)
    }

    /// What becomes of the first stream, `[batch, tokens, hidden]`, and the `further` ones: all of them,
    /// `[streams, batch, tokens, hidden]`.
    pub(super) fn predict(&self, first: &Array, further: &Array) -> MlxResult<Array> {
        let count = self.streams;
        let mut all = vec![first.clone()];
        for index in 0..count - 1 {
            all.push(further.try_index(index)?);
        }
        // [batch, tokens, streams, hidden]; the coefficients are to from.
        let by_token = stack(&all, 2)?;
        let coefficients = self.prediction.forward(&self.modalities(first)?)?;
        let [batch, tokens] = [first.dim(0), first.dim(1)];
        let coefficients = coefficients.reshape(&[batch, tokens, count, count])?;
        let predicted = coefficients.matmul(&by_token)?.add(&by_token)?;
        predicted.transpose_axes(&[2, 0, 1, 3])
    }

    /// The first stream and the further ones, once the first is known to be `active`.
    pub(super) fn correct(&self, predicted: &Array, active: &Array) -> MlxResult<(Array, Array)> {
        let off = active.subtract(first(predicted)?)?;
        let one = Array::from_f32(1.0).as_dtype(active.dtype())?;
        let factors = self.correction.forward(&self.modalities(active)?)?.add(one)?;
        let factors = factors.transpose_axes(&[2, 0, 1])?.expand_dims(-1)?;
        let corrected = predicted.add(factors.multiply(off)?)?;
        Ok((first(&corrected)?, corrected.try_index(1..)?))
    }

    /// The first stream as the layer's input is added by it.
    pub(super) fn scaled(&self, first: &Array) -> MlxResult<Array> {
        if self.is_scaled { first.multiply(self.scale.array()) } else { Ok(first.clone()) }
    }
}
