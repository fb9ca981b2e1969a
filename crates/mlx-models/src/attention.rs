//! The one attention function of every graph.

use mlx_rs::{
    Array,
    error::Exception,
    fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention},
    ops::{arange, select, softmax_axis, tanh},
};
use mlxgk_kv_cache::{Mask, Seen};

use crate::{Result, backend::Backend};

/// Softmax attention with grouped key/value heads.
///
/// `queries` is `[batch, heads, tokens, dim]`; keys and values are those that the cache showed, and
/// are unpacked first where it keeps them quantized. Returns `[batch, heads, tokens, dim]`. With
/// `soft_cap` c the scores become `c · tanh(s / c)` before the mask (Gemma 2), which MLX's fused
/// kernel does not offer.
pub(crate) fn attention(
    queries: &Array,
    seen: &Seen,
    scale: f32,
    soft_cap: Option<f32>,
    backend: Backend,
) -> Result<Array> {
    let (keys, values) = (seen.keys.dense()?, seen.values.dense()?);
    let of_mlx = || match &seen.mask {
        Mask::None => None,
        Mask::Causal => Some(ScaledDotProductAttentionMask::Causal),
        Mask::Array(it) => Some(ScaledDotProductAttentionMask::Array(it)),
    };
    if let Backend::Native(native) = backend {
        return Ok(native.attention(queries, &keys, &values, scale, of_mlx(), soft_cap)?);
    }
    if let (None, Backend::Gpu) = (soft_cap, backend) {
        let (fused, mask) = (scaled_dot_product_attention, of_mlx());
        return Ok(fused(queries, &keys, &values, scale, mask, None::<&Array>)?);
    }
    let weights = weights(queries, &keys, scale, &seen.mask, soft_cap)?;
    Ok(weights.matmul(&values)?.reshape(&mixed_shape(queries, &values))?)
}

/// As [`attention`], put together from MLX's operations, with the weights that each query gives to
/// the columns: `[batch, heads, tokens, columns]`.
pub(crate) fn attention_with_weights(
    queries: &Array,
    seen: &Seen,
    scale: f32,
    soft_cap: Option<f32>,
) -> Result<(Array, Array)> {
    let (keys, values) = (seen.keys.dense()?, seen.values.dense()?);
    let weights = weights(queries, &keys, scale, &seen.mask, soft_cap)?;
    let mixed = weights.matmul(&values)?.reshape(&mixed_shape(queries, &values))?;
    let shape = [queries.dim(0), queries.dim(1), queries.dim(2), keys.dim(2)];
    Ok((mixed, weights.reshape(&shape)?))
}

fn mixed_shape(queries: &Array, values: &Array) -> [i32; 4] {
    [queries.dim(0), queries.dim(1), queries.dim(2), values.dim(3)]
}

/// What each query gives to each column, `[batch, kv heads, heads per kv head · tokens, columns]`.
fn weights(
    queries: &Array,
    keys: &Array,
    scale: f32,
    mask: &Mask,
    soft_cap: Option<f32>,
) -> Result<Array, Exception> {
    // The query heads of a group lie behind one another, so that one product per group serves all of
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
    softmax_axis(scores, -1, true)
}
