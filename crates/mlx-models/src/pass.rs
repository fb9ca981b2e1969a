//! One forward pass as a block sees it: its view of the cache, and what all blocks share.

use mlx_rs::Array;
use mlxgk_kv_cache::{Pass, Seen, Step};

use crate::{
    Result,
    attention::{Softmax, attention, attention_weights},
    backend::Backend,
    growth::Growth,
    rope::{Rope, Rotation},
};

/// One forward pass as a block sees it: the cache's pass, and what all blocks share.
///
/// See the example of [`CustomBlock`](crate::CustomBlock), which is given one.
#[derive(Debug)]
pub struct BlockPass<'c> {
    /// The caller's cache; a block reads and writes its own layer.
    pub(crate) cache: Pass<'c>,
    /// Whether the sequence exceeds the original context (see [`Rope::rotation`]).
    long: bool,
    /// One per embedding met so far.
    rotations: Vec<(Rope, Rotation)>,
    /// What queries are multiplied by, one per growth met so far; `None` where that is 1.
    growths: Vec<(Growth, Option<Array>)>,
    /// What the half at work leaves for the next half of its block.
    pub(crate) left: Option<Array>,
    /// Inputs for each layer, where the model has them: `[batch, tokens, layers, width]`.
    pub(crate) per_layer: Option<Array>,
    /// The streams beside the one that blocks add to, where the model has them: `[streams, batch, tokens,
    /// hidden]`.
    pub(crate) streams: Option<Array>,
    /// Whether gradients may be taken through the pass, as training does.
    pub(crate) gradients: bool,
    /// Whether the attention weights of the block at work are asked for, and those it left.
    pub(crate) weights: Wanted,
}

/// Attention weights, where they are asked for.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Nobody looks at them: attention is computed in one operation.
    No,
    /// They are to be left here.
    Yes,
    /// `[batch, heads, tokens, columns]`.
    Left(Array),
}

impl<'c> BlockPass<'c> {
    pub(crate) fn new(cache: Pass<'c>, long: bool) -> Self {
        let (rotations, growths) = (Vec::new(), Vec::new());
        let (left, per_layer, streams) = (None, None, None);
        let (gradients, weights) = (false, Wanted::No);
        Self { cache, long, rotations, growths, left, per_layer, streams, gradients, weights }
    }

    /// The tokens' positions, ids and rows.
    pub fn step(&self) -> &Step {
        self.cache.step()
    }

    /// Brings a layer's new keys and values, `[batch, kv heads, tokens, dimension]` each, and returns
    /// all that the new tokens may look at.
    ///
    /// # Errors
    /// As [`Pass::append`].
    pub fn append(&mut self, layer: usize, keys: &Array, values: &Array) -> Result<Seen> {
        Ok(self.cache.append(layer, keys, values)?)
    }

    /// What a layer may look at that shares an earlier one's columns.
    ///
    /// # Errors
    /// As [`Pass::shared`].
    pub fn shared(&self, layer: usize) -> Result<Seen> {
        Ok(self.cache.shared(layer)?.clone())
    }

    /// The state that a layer left in the pass before; `None` before the first.
    ///
    /// # Errors
    /// As [`Pass::state`].
    pub fn state(&self, layer: usize) -> Result<Option<&[Array]>> {
        Ok(self.cache.state(layer)?)
    }

    /// Replaces the state of a layer. Left padding must have left it untouched: see [`Step::real`].
    ///
    /// # Errors
    /// As [`Pass::set_state`].
    pub fn set_state(&mut self, layer: usize, state: Vec<Array>) -> Result<()> {
        Ok(self.cache.set_state(layer, state)?)
    }

    /// `x`, `[batch, tokens, ..]`, with 0 in place of left padding: what a recurrence or a convolution
    /// is given, which have no mask.
    pub(crate) fn without_padding(&self, x: &Array) -> Result<Array> {
        match self.step().real() {
            None => Ok(x.clone()),
            Some(real) => Ok(x.multiply(real.expand_dims(-1)?.as_dtype(x.dtype())?)?),
        }
    }

    /// What an embedding does to this pass's tokens; made once for all layers.
    pub(crate) fn rotation(&mut self, rope: &Rope) -> Result<Rotation> {
        if let Some((_, rotation)) = self.rotations.iter().find(|(it, _)| it.is(rope)) {
            return Ok(rotation.clone());
        }
        rope.check(self.step())?;
        let rotation = rope.rotation(self.step(), self.long)?;
        self.rotations.push((rope.clone(), rotation.clone()));
        Ok(rotation)
    }

    /// `queries`, `[batch, heads, tokens, dimension]`, times what they grow by.
    pub(crate) fn grown(&mut self, queries: Array, growth: Growth) -> Result<Array> {
        let factors = match self.growths.iter().find(|(it, _)| *it == growth) {
            Some((_, factors)) => factors.clone(),
            None => {
                let factors = growth.factors(self.step());
                self.growths.push((growth, factors.clone()));
                factors
            }
        };
        match factors {
            None => Ok(queries),
            Some(factors) => Ok(queries.multiply(factors.as_dtype(queries.dtype())?)?),
        }
    }

    /// Softmax attention of `queries`, `[batch, heads, tokens, dimension]`, over what they see; leaves
    /// its weights where somebody asked for them.
    pub(crate) fn attend(
        &mut self,
        queries: &Array,
        seen: &Seen,
        softmax: Softmax<'_>,
        backend: Backend,
    ) -> Result<Array> {
        if !matches!(self.weights, Wanted::No) {
            self.weights = Wanted::Left(attention_weights(queries, seen, softmax)?);
        }
        attention(queries, seen, softmax, backend)
    }
}
