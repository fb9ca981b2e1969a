//! The one attention function of every graph.

use mlx_rs::{
    Array,
    error::Result,
    fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention},
    ops::{arange, select, softmax_axis, tanh},
};
use mlxgk_kv_cache::Mask;

use crate::backend::Backend;

/// Softmax attention with grouped key/value heads.
///
/// `queries` is `[batch, heads, tokens, dim]`, `keys` and `values` `[batch, kv heads, columns, dim]`;
/// returns `[batch, heads, tokens, dim]`. With `soft_cap` c the scores become `c · tanh(s / c)`
/// before the mask (Gemma 2), which MLX's fused kernel does not offer.
pub(crate) fn attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    mask: &Mask,
    soft_cap: Option<f32>,
    backend: Backend,
) -> Result<Array> {
    let of_mlx = || match mask {
        Mask::None => None,
        Mask::Causal => Some(ScaledDotProductAttentionMask::Causal),
        Mask::Array(it) => Some(ScaledDotProductAttentionMask::Array(it)),
    };
    if let Backend::Native(native) = backend {
        return native.attention(queries, keys, values, scale, of_mlx(), soft_cap);
    }
    if let (None, Backend::Gpu) = (soft_cap, backend) {
        let mask = of_mlx();
        return scaled_dot_product_attention(queries, keys, values, scale, mask, None::<&Array>);
    }

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
    softmax_axis(scores, -1, true)?.matmul(values)?.reshape(&[batch, heads, tokens, dim])
}
