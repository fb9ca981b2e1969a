//! From token ids to the first values of the residual stream.

use mlx_rs::{Array, Dtype};

use crate::{Result, linear::Linear, parameters::visit};

/// A token table, and what its rows are multiplied by.
#[derive(Debug)]
pub(crate) struct Embedding {
    table: Linear,
    /// In the compute dtype: HF rounds the factor to the weights' dtype before multiplying.
    scale: Option<Array>,
}

visit!(struct Embedding { table });

impl Embedding {
    pub(crate) fn new(table: Linear, scale: Option<f32>, dtype: Dtype) -> Result<Self> {
        let scale = scale.map(|it| Array::from_f32(it).as_dtype(dtype)).transpose()?;
        if let Some(scale) = &scale {
            scale.eval()?;
        }
        Ok(Self { table, scale })
    }

    /// The table, which tied models use as the head too.
    pub(crate) fn table(&self) -> &Linear {
        &self.table
    }

    /// Ids of `[batch, tokens]` to `[batch, tokens, hidden]`.
    pub(crate) fn forward(&self, tokens: &Array) -> Result<Array> {
        let embedded = self.table.rows(tokens)?;
        match &self.scale {
            None => Ok(embedded),
            Some(scale) => Ok(embedded.multiply(scale)?),
        }
    }
}
