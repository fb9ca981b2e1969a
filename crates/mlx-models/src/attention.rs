//! The one attention function of every graph.

use mlx_rs::{
    Array,
    error::Exception,
    ops::{arange, broadcast_to, concatenate, indexing::TryIndexOp, select, softmax_axis, tanh},
};
use mlxgk_kv_cache::{Mask, Seen};

use crate::{Result, backend::Backend};

/// How scores become weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax<'a> {
    /// What scores are multiplied by first.
    pub(crate) scale: f32,
    /// With c the scores become `c · tanh(s / c)` before the mask (Gemma 2).
    pub(crate) soft_cap: Option<f32>,
    /// `[heads]`: a score per head that no column has, and that takes its share of each sum (gpt-oss).
    pub(crate) sinks: Option<&'a Array>,
}

/// Softmax attention with grouped key/value heads.
///
/// `queries` is `[batch, heads, tokens, dim]`; keys and values are those that the cache showed. Returns
/// `[batch, heads, tokens, dim of values]`.
pub(crate) fn attention(
    queries: &Array,
    seen: &Seen,
    softmax: Softmax<'_>,
    backend: Backend,
) -> Result<Array> {
    backend.attention(queries, seen, softmax)
}

/// The weights that [`attention`] gives to the columns by each query, `[batch, heads, tokens, columns]`.
/// They are computed apart from its result, which therefore does not depend on whether somebody asks.
pub(crate) fn attention_weights(
    queries: &Array,
    seen: &Seen,
    softmax: Softmax<'_>,
) -> Result<Array> {
    let keys = seen.keys.dense()?;
    let weights = weights(queries, &keys, &seen.mask, softmax)?;
    Ok(weights.reshape(&[queries.dim(0), queries.dim(1), queries.dim(2), keys.dim(2)])?)
}

/// Attention put together from MLX's operations.
pub(crate) fn composed(
    queries: &Array,
    keys: &Array,
    values: &Array,
    mask: &Mask,
    softmax: Softmax<'_>,
) -> Result<Array, Exception> {
    let weights = weights(queries, keys, mask, softmax)?;
    let shape = [queries.dim(0), queries.dim(1), queries.dim(2), values.dim(3)];
    weights.matmul(values)?.reshape(&shape)
}

/// What each query gives to each column, `[batch, kv heads, heads per kv head · tokens, columns]`.
fn weights(
    queries: &Array,
    keys: &Array,
    mask: &Mask,
    Softmax { scale, soft_cap, sinks }: Softmax<'_>,
) -> Result<Array, Exception> {
    // The query heads of a group lie one after another, so that one product per group serves all of
    // them and reads its keys once.
    let [batch, heads, tokens, dim] = [0, 1, 2, 3].map(|axis| queries.dim(axis));
    let (groups, columns) = (keys.dim(1), keys.dim(2));
    let group = heads / groups;
    let queries = queries
        .multiply(Array::from_f32(scale).as_dtype(queries.dtype())?)?
        .reshape(&[batch, groups, group * tokens, dim])?;
    let mut scores = queries.matmul(keys.swap_axes(-1, -2)?)?;
    if let Some(cap) = soft_cap {
        let cap = Array::from_f32(cap).as_dtype(scores.dtype())?;
        scores = tanh(scores.divide(&cap)?)?.multiply(&cap)?;
    }
    let sizes = Scored { groups, group, tokens, columns };
    let sinks = sinks.map(|it| it.as_dtype(scores.dtype())).transpose()?;
    shares(scores, sizes, mask, sinks.as_ref())
}

/// What scores are of: query heads in groups, each of which has its keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scored {
    pub(crate) groups: i32,
    /// Heads per group.
    pub(crate) group: i32,
    pub(crate) tokens: i32,
    pub(crate) columns: i32,
}

/// The softmax of `scores`, `[batch, groups, group · tokens, columns]`, over what the mask shows and a
/// sink per head.
pub(crate) fn shares(
    mut scores: Array,
    Scored { groups, group, tokens, columns }: Scored,
    mask: &Mask,
    sinks: Option<&Array>,
) -> Result<Array, Exception> {
    let batch = scores.dim(0);
    let seen = match mask {
        Mask::None => None,
        Mask::Causal => {
            let last = arange::<i32, i32>(columns - tokens, columns, 1)?.expand_dims(1)?;
            Some(arange::<i32, i32>(0, columns, 1)?.expand_dims(0)?.le(last)?)
        }
        // [batch or 1, 1, tokens, columns] gains the axis of heads within a group.
        Mask::Array(it) => Some(it.expand_dims(2)?),
    };
    if let Some(seen) = seen {
        let banned = Array::from_f32(f32::NEG_INFINITY).as_dtype(scores.dtype())?;
        let apart = scores.reshape(&[batch, groups, group, tokens, columns])?;
        scores = select(seen, apart, banned)?.reshape(&[batch, groups, group * tokens, columns])?;
    }
    let Some(sinks) = sinks else { return softmax_axis(scores, -1, true) };
    let sinks = sinks.reshape(&[1, groups, group, 1, 1])?;
    let sinks = broadcast_to(&sinks, &[batch, groups, group, tokens, 1])?;
    let sinks = sinks.reshape(&[batch, groups, group * tokens, 1])?;
    let weights = softmax_axis(concatenate(&[&scores, &sinks], -1)?, -1, true)?;
    weights.try_index((.., .., .., ..columns))
}
