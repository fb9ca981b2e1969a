//! Further residual streams beside the one that blocks add to (Gemma 3n's AltUp: Baykal et al., 2023).
//!
//! The stream of the loop, which hooks see, is the first: the active one. The others follow from it at the
//! beginning, are corrected by each block, and are put back into it at the end.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{indexing::TryIndexOp, maximum, mean_axis, sqrt, stack},
};

use crate::{Result, linear::Linear, parameters::visit};

/// The products between the streams and the first one.
#[derive(Debug)]
pub(crate) struct Streams {
    /// From the first, one per further stream.
    spread: Vec<Linear>,
    /// To the first.
    gather: Vec<Linear>,
}

visit!(struct Streams { spread, gather });

impl Streams {
    pub(crate) fn new(spread: Vec<Linear>, gather: Vec<Linear>) -> Self {
        Self { spread, gather }
    }

    /// The further streams, `[streams, batch, tokens, hidden]`, of embeddings `[batch, tokens, hidden]`.
    pub(crate) fn spread(&self, first: &Array) -> Result<Array> {
        let size = magnitude(first)?;
        let made = self.spread.iter().map(|it| scaled(&it.forward(first)?, &size));
        Ok(stack(&made.collect::<MlxResult<Vec<_>>>()?, 0)?)
    }

    /// The mean of the first stream and the further ones, which are made as large as it.
    pub(crate) fn gather(&self, first: &Array, further: &Array) -> Result<Array> {
        let size = magnitude(first)?;
        let mut sum = first.clone();
        for (index, product) in self.gather.iter().enumerate() {
            let stream = product.forward(&further.try_index(index as i32)?)?;
            sum = sum.add(scaled(&stream, &size)?)?;
        }
        let count = Array::from_f32((self.gather.len() + 1) as f32).as_dtype(sum.dtype())?;
        Ok(sum.divide(count)?)
    }
}

/// `√mean(x²)` over the last axis.
fn magnitude(x: &Array) -> MlxResult<Array> {
    sqrt(mean_axis(x.square()?, -1, true)?)
}

/// `x` made as large as `size`.
fn scaled(x: &Array, size: &Array) -> MlxResult<Array> {
    let least = Array::from_f32(1e-5).as_dtype(x.dtype())?;
    let own = sqrt(maximum(mean_axis(x.square()?, -1, true)?, least)?)?;
    x.multiply(size)?.divide(own)
}
