//! What the operations take: shapes and types are checked here, before anything is handed to C++.

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    fast::ScaledDotProductAttentionMask as Mask,
};

/// Refuses an array that is not of the type.
fn dtype(operation: &str, name: &str, array: &Array, expected: Dtype) -> Result<()> {
    let found = array.dtype();
    if found == expected {
        return Ok(());
    }
    Err(Exception::custom(format!("{operation}: `{name}` is {found:?}, expected {expected:?}")))
}

/// Refuses arrays that do not fit together.
fn fits(operation: &str, expected: &str, arrays: &[(&str, &Array)], it_does: bool) -> Result<()> {
    if it_does {
        return Ok(());
    }
    let found: Vec<String> =
        arrays.iter().map(|(name, array)| format!("`{name}` {:?}", array.shape())).collect();
    Err(Exception::custom(format!("{operation}: {} do not fit: {expected}", found.join(", "))))
}

/// Attention's arrays; returns the mask in four axes.
pub(crate) fn attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    mask: Option<&Mask<'_>>,
    soft_cap: Option<f32>,
) -> Result<Option<Array>> {
    const NAME: &str = "attention";
    let arrays = [("queries", queries), ("keys", keys), ("values", values)];
    for (name, array) in arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let (q, k) = (queries.shape(), keys.shape());
    fits(
        NAME,
        "queries are [batch, heads, tokens, dim], keys and values [batch, groups, columns, dim], \
         and groups divide heads",
        &arrays,
        q.len() == 4
            && k.len() == 4
            && k == values.shape()
            && (q[0], q[3]) == (k[0], k[3])
            && k[1] > 0
            && q[1] % k[1] == 0,
    )?;
    if let Some(cap) = soft_cap.filter(|&cap| cap.is_nan() || cap <= 0.0) {
        return Err(Exception::custom(format!("{NAME}: the soft cap is {cap}, must be positive")));
    }
    match mask {
        None => Ok(None),
        Some(Mask::Causal) => {
            let each_has_a_column = q[2] <= k[2];
            fits(NAME, "a causal mask needs a column per token", &arrays[..2], each_has_a_column)?;
            Ok(None)
        }
        Some(Mask::Array(seen)) => {
            dtype(NAME, "mask", seen, Dtype::Bool)?;
            let full = [q[0], q[1], q[2], k[2]];
            let shape = seen.shape();
            let fitting = shape.len() <= 4
                && shape
                    .iter()
                    .rev()
                    .zip(full.iter().rev())
                    .all(|(&it, &all)| it == 1 || it == all);
            let arrays = [("queries", queries), ("keys", keys), ("mask", *seen)];
            fits(NAME, "a mask broadcasts to [batch, heads, tokens, columns]", &arrays, fitting)?;
            let leading = vec![1; 4 - shape.len()];
            if leading.is_empty() {
                return Ok(Some((*seen).clone()));
            }
            seen.reshape(&[&leading, shape].concat()).map(Some)
        }
    }
}

pub(crate) fn rms_norm(x: &Array, weight: &Array) -> Result<()> {
    const NAME: &str = "rms_norm";
    let arrays = [("x", x), ("weight", weight)];
    for (name, array) in arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let fitting = weight.ndim() == 1 && x.shape().last() == weight.shape().last();
    fits(NAME, "there is one weight per place of the last axis of x", &arrays, fitting)
}

pub(crate) fn rotate(x: &Array, cos: &Array, sin: &Array) -> Result<()> {
    const NAME: &str = "rotate";
    let arrays = [("x", x), ("cos", cos), ("sin", sin)];
    for (name, array) in arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let (x, c, s) = (x.shape(), cos.shape(), sin.shape());
    let fitting = x.len() == 4
        && c.len() == 5
        && s.len() == 5
        && (c[0] == 1 || c[0] == x[0])
        && (c[1], c[2], c[3]) == (1, x[2], 1)
        && (s[0], s[1], s[2], s[3], s[4]) == (c[0], 1, x[2], 2, c[4])
        && c[4] <= x[3] / 2;
    fits(
        NAME,
        "x is [batch, heads, tokens, dim], cos [batch or 1, 1, tokens, 1, half], sin [the same, 1, \
         tokens, 2, half], and 2 · half at most dim",
        &arrays,
        fitting,
    )
}

pub(crate) fn silu_gate(gate: &Array, up: &Array) -> Result<()> {
    const NAME: &str = "silu_gate";
    let arrays = [("gate", gate), ("up", up)];
    for (name, array) in arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let fitting = gate.ndim() > 0 && gate.shape() == up.shape();
    fits(NAME, "both have one shape, of at least one axis", &arrays, fitting)
}

pub(crate) fn widening_product(x: &Array, weight: &Array) -> Result<()> {
    const NAME: &str = "widening_product";
    dtype(NAME, "x", x, Dtype::Float32)?;
    dtype(NAME, "weight", weight, Dtype::Bfloat16)?;
    let fitting = weight.ndim() == 2 && x.shape().last() == weight.shape().last();
    fits(NAME, "x is [.., in], weight [out, in]", &[("x", x), ("weight", weight)], fitting)
}

pub(crate) fn affine_product(
    x: &Array,
    [words, scales, biases]: [&Array; 3],
    group_size: i32,
    bits: i32,
) -> Result<()> {
    const NAME: &str = "affine_product";
    dtype(NAME, "words", words, Dtype::Uint32)?;
    for (name, array) in [("x", x), ("scales", scales), ("biases", biases)] {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    if ![2, 3, 4, 5, 6, 8].contains(&bits) || ![16, 32, 64, 128].contains(&group_size) {
        return Err(Exception::custom(format!(
            "{NAME}: {bits} bits in groups of {group_size}; bits are 2, 3, 4, 5, 6 or 8, and groups \
             16, 32, 64 or 128"
        )));
    }
    let (w, s) = (words.shape(), scales.shape());
    let fitting = w.len() == 2
        && s.len() == 2
        && s == biases.shape()
        && w[0] == s[0]
        && i64::from(w[1]) * 32 == i64::from(s[1]) * i64::from(group_size * bits)
        && x.shape()
            .last()
            .is_some_and(|&it| i64::from(it) == i64::from(s[1]) * i64::from(group_size));
    fits(
        NAME,
        "x is [.., in], words [out, in · bits / 32], scales and biases [out, in / group_size]",
        &[("x", x), ("words", words), ("scales", scales), ("biases", biases)],
        fitting,
    )
}
