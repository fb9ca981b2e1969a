//! Inputs of their own for each block, next to the residual stream (Gemma 4): from a second token table, and
//! from what the first block is given.

use mlx_rs::{Array, error::Result as MlxResult, ops::indexing::TryIndexOp};

use crate::{
    Result,
    config::Dims,
    embedding::Embedding,
    linear::Linear,
    norm::{NormWeight, RmsNorm},
    parameters::visit,
    weights::Weights,
};

/// `p = (norm(W embedding / √hidden) + √width · table[token]) / √2`, a vector for each layer.
#[derive(Debug)]
pub(crate) struct PerLayerInputs {
    table: Embedding,
    projection: Linear,
    norm: RmsNorm,
    /// `1 / √hidden` and `1 / √2`.
    scales: [Array; 2],
    layers: i32,
    width: i32,
    /// How many tokens the table has a row for, where the vocabulary has more: others have row 0.
    tokens: Option<u32>,
}

visit!(struct PerLayerInputs { table, projection, norm });

impl PerLayerInputs {
    /// Loads the tables for `tokens` ids.
    pub(crate) fn load(
        weights: &mut Weights,
        tokens: usize,
        [hidden, layers, width]: [usize; 3],
        eps: f32,
    ) -> Result<Self> {
        let table =
            weights.linear("model.embed_tokens_per_layer", tokens, layers * width, false)?;
        let projection = "model.per_layer_model_projection";
        let norm = "model.per_layer_projection_norm";
        let dtype = weights.dtype();
        let scale = |it: f32| -> MlxResult<Array> {
            let scale = Array::from_f32(it).as_dtype(dtype)?;
            scale.eval()?;
            Ok(scale)
        };
        Ok(Self {
            table: Embedding::new(table, Some((width as f32).sqrt()), dtype)?,
            projection: weights.linear(projection, layers * width, hidden, false)?,
            norm: weights.norm(norm, width, eps, NormWeight::Plain)?,
            scales: [scale((hidden as f32).powf(-0.5))?, scale(0.5_f32.sqrt())?],
            layers: layers as i32,
            width: width as i32,
            tokens: None,
        })
    }

    /// The same, for a vocabulary that may be larger than the table of `tokens` rows (Gemma 3n).
    pub(crate) fn within(self, dims: &Dims, tokens: usize) -> Self {
        let tokens = (tokens < dims.vocab).then_some(tokens as u32);
        Self { tokens, ..self }
    }

    /// For `tokens` of `[batch, tokens]` and their `embedded`, `[batch, tokens, hidden]`: `[batch, tokens,
    /// layers, width]`.
    pub(crate) fn inputs(&self, tokens: &Array, embedded: &Array) -> Result<Array> {
        let shape = [embedded.dim(0), embedded.dim(1), self.layers, self.width];
        let tokens = match self.tokens {
            None => tokens.clone(),
            Some(count) => {
                let is_there = tokens.lt(Array::from_slice(&[count], &[1]))?;
                tokens.multiply(is_there.as_dtype(tokens.dtype())?)?
            }
        };
        let of_tokens = self.table.forward(&tokens)?.reshape(&shape)?;
        let of_context = self.projection.forward(embedded)?.multiply(&self.scales[0])?;
        let of_context = self.norm.forward(&of_context.reshape(&shape)?)?;
        Ok(of_context.add(of_tokens)?.multiply(&self.scales[1])?)
    }
}

/// A layer's part of all [`inputs`](PerLayerInputs::inputs): `[batch, tokens, width]`.
pub(crate) fn of_layer(inputs: &Array, layer: usize) -> MlxResult<Array> {
    inputs.try_index((.., .., layer as i32, ..))
}
