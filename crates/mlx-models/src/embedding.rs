//! From token ids to the first values of the residual stream.

use mlx_rs::{Array, Dtype};

use crate::{
    Result,
    linear::Linear,
    norm::{RmsNorm, normed},
    parameters::visit,
};

/// A token table, and what is done to its rows.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    table: Linear,
    /// In the compute dtype: HF rounds the factor to the weights' dtype before multiplying.
    scale: Option<Array>,
    /// Without a weight (Muse Glimmer).
    norm: Option<RmsNorm>,
}

visit!(struct Embedding { table });

impl Embedding {
    pub(crate) fn new(table: Linear, scale: Option<f32>, dtype: Dtype) -> Result<Self> {
        let scale = scale.map(|it| Array::from_f32(it).as_dtype(dtype)).transpose()?;
        if let Some(scale) = &scale {
            scale.eval()?;
        }
        Ok(Self { table, scale, norm: None })
    }

    /// The same, with rows that are normed.
    pub(crate) fn normed(self, norm: Option<RmsNorm>) -> Self {
        Self { norm, ..self }
    }

    /// The table, which tied models use as the head too.
    pub(crate) fn table(&self) -> &Linear {
        &self.table
    }

    /// Ids of `[batch, tokens]` to `[batch, tokens, hidden]`.
    pub(crate) fn forward(&self, tokens: &Array) -> Result<Array> {
        let embedded = self.table.rows(tokens)?;
        let embedded = match &self.scale {
            None => embedded,
            Some(scale) => embedded.multiply(scale)?,
        };
        normed(self.norm.as_ref(), &embedded)
    }
}
