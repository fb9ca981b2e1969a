//! What the operations take: shapes and types are checked here, before anything is handed to C++.

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    fast::ScaledDotProductAttentionMask as Mask,
};

use crate::{Mode, Packed, Quantization, routing::Routing};

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

const ATTENTION: &str = "attention";

/// Attention's arrays; returns the mask in four axes.
pub(crate) fn attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    mask: Option<&Mask<'_>>,
    soft_cap: Option<f32>,
) -> Result<Option<Array>> {
    for (name, array) in [("queries", queries), ("keys", keys), ("values", values)] {
        dtype(ATTENTION, name, array, Dtype::Float32)?;
    }
    heads(queries.shape(), keys.shape(), values.shape())?;
    softmax(queries, keys.shape(), mask, soft_cap)
}

/// The same for packed keys and values.
pub(crate) fn packed_attention(
    queries: &Array,
    keys: &Packed,
    values: &Packed,
    mask: Option<&Mask<'_>>,
    soft_cap: Option<f32>,
) -> Result<Option<Array>> {
    dtype(ATTENTION, "queries", queries, Dtype::Float32)?;
    for (name, packed) in [("keys", keys), ("values", values)] {
        if packed.quantization() != keys.quantization() || keys.quantization().mode != Mode::Affine
        {
            let (found, of_keys) = (packed.quantization(), keys.quantization());
            return Err(Exception::custom(format!(
                "{ATTENTION}: `{name}` are packed as {found:?} and `keys` as {of_keys:?}, expected one \
                 affine mode for both"
            )));
        }
        for array in [Some(packed.scales()), packed.biases()].into_iter().flatten() {
            let found = array.dtype();
            if ![Dtype::Float32, Dtype::Float16, Dtype::Bfloat16].contains(&found) {
                return Err(Exception::custom(format!(
                    "{ATTENTION}: the scales of `{name}` are {found:?}, expected Float32, Float16 or \
                     Bfloat16"
                )));
            }
        }
    }
    heads(queries.shape(), &keys.shape(), &values.shape())?;
    softmax(queries, &keys.shape(), mask, soft_cap)
}

/// That there are keys and values for every query.
fn heads(q: &[i32], k: &[i32], v: &[i32]) -> Result<()> {
    let fitting = q.len() == 4
        && k.len() == 4
        && k == v
        && (q[0], q[3]) == (k[0], k[3])
        && k[1] > 0
        && q[1] % k[1] == 0;
    if fitting {
        return Ok(());
    }
    Err(Exception::custom(format!(
        "{ATTENTION}: `queries` {q:?}, `keys` {k:?}, `values` {v:?} do not fit: queries are [batch, \
         heads, tokens, dim], keys and values [batch, groups, columns, dim], and groups divide heads"
    )))
}

/// That a cap and a mask fit queries and keys that fit each other; returns the mask in four axes.
fn softmax(
    queries: &Array,
    keys: &[i32],
    mask: Option<&Mask<'_>>,
    soft_cap: Option<f32>,
) -> Result<Option<Array>> {
    let q = queries.shape();
    if let Some(cap) = soft_cap.filter(|&cap| cap.is_nan() || cap <= 0.0) {
        let what = format!("{ATTENTION}: the soft cap is {cap}, must be positive");
        return Err(Exception::custom(what));
    }
    match mask {
        None => Ok(None),
        Some(Mask::Causal) => {
            if q[2] <= keys[2] {
                return Ok(None);
            }
            Err(Exception::custom(format!(
                "{ATTENTION}: `queries` {q:?}, `keys` {keys:?} do not fit: a causal mask needs a column \
                 per token"
            )))
        }
        Some(Mask::Array(seen)) => {
            dtype(ATTENTION, "mask", seen, Dtype::Bool)?;
            let full = [q[0], q[1], q[2], keys[2]];
            let shape = seen.shape();
            let fitting = shape.len() <= 4
                && shape
                    .iter()
                    .rev()
                    .zip(full.iter().rev())
                    .all(|(&it, &all)| it == 1 || it == all);
            if !fitting {
                return Err(Exception::custom(format!(
                    "{ATTENTION}: `queries` {q:?}, `keys` {keys:?}, `mask` {shape:?} do not fit: a mask \
                     broadcasts to [batch, heads, tokens, columns]"
                )));
            }
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

/// That `part` fits into `array` from a place of an axis on.
pub(crate) fn updated(array: &Array, axis: usize, from: i32, part: &Array) -> Result<()> {
    const NAME: &str = "updated";
    dtype(NAME, "part", part, array.dtype())?;
    let (all, some) = (array.shape(), part.shape());
    let fitting = all.len() == some.len()
        && axis < all.len()
        && from >= 0
        && some[axis] <= all[axis] - from
        && (0..all.len()).all(|it| it == axis || all[it] == some[it]);
    let expected = format!("part is as array, and along axis {axis} ends within it from {from} on");
    fits(NAME, &expected, &[("array", array), ("part", part)], fitting)
}

/// An array whose heads are cut out and rotated. All arrays of one call fit the same tables, so they have the
/// same tokens; where tables are for one row, batches are compared with them alone.
pub(crate) fn turned_heads(
    x: &Array,
    weight: Option<&Array>,
    cos: &Array,
    sin: &Array,
    dim: i32,
) -> Result<()> {
    const NAME: &str = "turned_heads";
    let mut arrays = vec![("x", x), ("cos", cos), ("sin", sin)];
    arrays.extend(weight.map(|it| ("weight", it)));
    for (name, array) in &arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let (shape, c, s) = (x.shape(), cos.shape(), sin.shape());
    let fitting = dim > 0
        && shape.len() == 3
        && shape[2] % dim == 0
        && weight.is_none_or(|it| it.shape() == [dim])
        && c.len() == 5
        && (c[0] == 1 || c[0] == shape[0])
        && (c[1], c[2], c[3]) == (1, shape[1], 1)
        && s == [c[0], 1, shape[1], 2, c[4]]
        && c[4] <= dim / 2;
    let expected = format!(
        "x is [batch, tokens, heads · {dim}], cos [batch or 1, 1, tokens, 1, half], sin [the same, 1, tokens, 2, \
         half], a weight [{dim}], and 2 · half at most {dim}"
    );
    fits(NAME, &expected, &arrays, fitting)
}

pub(crate) fn gate(gate: &Array, up: &Array) -> Result<()> {
    const NAME: &str = "gate";
    let arrays = [("gate", gate), ("up", up)];
    for (name, array) in arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let fitting = gate.ndim() > 0 && gate.shape() == up.shape();
    fits(NAME, "both have one shape, of at least one axis", &arrays, fitting)
}

pub(crate) fn causal_convolution(
    x: &Array,
    before: &Array,
    weight: &Array,
    bias: Option<&Array>,
) -> Result<()> {
    const NAME: &str = "causal convolution";
    let mut arrays = vec![("x", x), ("before", before), ("weight", weight)];
    arrays.extend(bias.map(|it| ("bias", it)));
    for &(name, array) in &arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let (x, w) = (x.shape(), weight.shape());
    let fitting = x.len() == 3
        && w.len() == 2
        && w[0] > 0
        && w[1] == x[2]
        && before.shape() == [x[0], w[0] - 1, x[2]]
        && bias.is_none_or(|it| it.shape() == [x[2]]);
    fits(
        NAME,
        "x is [batch, tokens, channels], before [batch, width - 1, channels], weight [width, channels], \
         bias [channels]",
        &arrays,
        fitting,
    )
}

pub(crate) fn recurrence(
    [queries, keys, values]: [&Array; 3],
    log_decays: &Array,
    rates: Option<&Array>,
    state: &Array,
) -> Result<()> {
    const NAME: &str = "recurrence";
    let mut arrays = vec![
        ("queries", queries),
        ("keys", keys),
        ("values", values),
        ("log_decays", log_decays),
        ("state", state),
    ];
    arrays.extend(rates.map(|it| ("rates", it)));
    for &(name, array) in &arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let (q, v, g) = (queries.shape(), values.shape(), log_decays.shape());
    let fitting = q.len() == 4
        && v.len() == 4
        && g.len() == 4
        && q == keys.shape()
        && q[..2] == v[..2]
        && q[1] > 0
        && q[2] > 0
        && q[3] > 0
        && v[2] % q[2] == 0
        && g[..3] == v[..3]
        && (g[3] == 1 || g[3] == q[3])
        && state.shape() == [v[0], v[2], q[3], v[3]]
        && rates.is_none_or(|it| it.shape() == [v[0], v[1], v[2], 1]);
    fits(
        NAME,
        "queries and keys are [batch, tokens, key heads, key dim], values [batch, tokens, heads, value \
         dim], of a token at least, log_decays [batch, tokens, heads, 1 or key dim], rates [batch, tokens, \
         heads, 1], state [batch, heads, key dim, value dim], and key heads divide heads",
        &arrays,
        fitting,
    )
}

pub(crate) fn widening_product(x: &Array, weight: &Array) -> Result<()> {
    const NAME: &str = "widening_product";
    dtype(NAME, "x", x, Dtype::Float32)?;
    dtype(NAME, "weight", weight, Dtype::Bfloat16)?;
    let fitting = weight.ndim() == 2 && x.shape().last() == weight.shape().last();
    fits(NAME, "x is [.., in], weight [out, in]", &[("x", x), ("weight", weight)], fitting)
}

/// That there is a matrix to multiply by.
pub(crate) fn some(matrices: usize) -> Result<()> {
    match matrices {
        0 => Err(Exception::custom("products: there is no matrix")),
        _ => Ok(()),
    }
}

/// That two matrices whose products are gated have one shape.
pub(crate) fn pair(gate: &[i32], up: &[i32]) -> Result<()> {
    if gate == up {
        return Ok(());
    }
    let what = format!("gated product: `gate` {gate:?} and `up` {up:?} are not of one shape");
    Err(Exception::custom(what))
}

pub(crate) fn gathered_widening_product(x: &Array, weight: &Array, chosen: &Array) -> Result<()> {
    const NAME: &str = "gathered_widening_product";
    dtype(NAME, "x", x, Dtype::Float32)?;
    dtype(NAME, "weight", weight, Dtype::Bfloat16)?;
    gathered(NAME, x, weight.shape(), chosen)
}

/// What the native products take of packed weights: fp32 `x`, and scales that are fp32 or bf16.
pub(crate) fn natively(x: &Array, weight: &Packed) -> Result<()> {
    const NAME: &str = "packed product";
    dtype(NAME, "x", x, Dtype::Float32)?;
    let Some(biases) = weight.biases() else { return Ok(()) };
    for (name, array) in [("scales", weight.scales()), ("biases", biases)] {
        let found = array.dtype();
        if ![Dtype::Float32, Dtype::Bfloat16].contains(&found) {
            let what = format!("{NAME}: `{name}` is {found:?}, expected Float32 or Bfloat16");
            return Err(Exception::custom(what));
        }
    }
    Ok(())
}

/// That there are matrices, and that they are packed alike; returns how.
pub(crate) fn packed_alike(weights: &[&Packed]) -> Result<Quantization> {
    some(weights.len())?;
    let first = weights[0].quantization();
    for weight in weights {
        let found = weight.quantization();
        if found != first {
            let what = format!("products: matrices are packed as {first:?} and as {found:?}");
            return Err(Exception::custom(what));
        }
    }
    Ok(first)
}

/// The arrays of packed numbers, and that there is such a quantization.
pub(crate) fn packed(
    words: &Array,
    scales: &Array,
    biases: Option<&Array>,
    quantization: Quantization,
) -> Result<()> {
    const NAME: &str = "packed numbers";
    let Quantization { mode, group_size, bits } = quantization;
    let known = match mode {
        Mode::Affine => Quantization::affine(group_size, bits).is_some(),
        Mode::Mxfp4 => quantization == Quantization::MXFP4,
        Mode::Mxfp8 => quantization == Quantization::MXFP8,
        Mode::Nvfp4 => quantization == Quantization::NVFP4,
    };
    if !known {
        let mode = mode.name();
        return Err(Exception::custom(format!(
            "{NAME}: {mode} has no {bits} bits in groups of {group_size}"
        )));
    }
    dtype(NAME, "words", words, Dtype::Uint32)?;
    if mode != Mode::Affine {
        dtype(NAME, "scales", scales, Dtype::Uint8)?;
    }
    let floats = biases.map(|biases| [("scales", scales), ("biases", biases)]);
    for (name, array) in floats.into_iter().flatten() {
        if !array.dtype().is_float() {
            let found = array.dtype();
            return Err(Exception::custom(format!(
                "{NAME}: `{name}` is {found:?}, expected floats"
            )));
        }
    }
    let (w, s) = (words.shape(), scales.shape());
    let fitting = biases.is_some() == (mode == Mode::Affine)
        && biases.is_none_or(|it| it.shape() == s)
        && (2..=4).contains(&w.len())
        && w.len() == s.len()
        && w[..w.len() - 1] == s[..w.len() - 1]
        && i64::from(w[w.len() - 1]) * 32
            == i64::from(s[w.len() - 1]) * i64::from(group_size * bits);
    let mut arrays = vec![("words", words), ("scales", scales)];
    arrays.extend(biases.map(|it| ("biases", it)));
    let expected = "words are [.., out, in · bits / 32], scales [.., out, in / group_size], and so are \
                    the biases that the affine mode alone has";
    fits(NAME, expected, &arrays, fitting)
}

/// That there is an id for each row of logits.
pub(crate) fn token_logprobs(logits: &Array, ids: &Array) -> Result<()> {
    const NAME: &str = "log-probabilities of tokens";
    dtype(NAME, "logits", logits, Dtype::Float32)?;
    dtype(NAME, "ids", ids, Dtype::Uint32)?;
    let fitting = logits.ndim() == 2 && logits.dim(1) > 0 && ids.shape() == [logits.dim(0)];
    fits(
        NAME,
        "logits are [rows, vocabulary], ids [rows]",
        &[("logits", logits), ("ids", ids)],
        fitting,
    )
}

/// That `x` is `[.., in]` for a single matrix.
pub(crate) fn product(x: &Array, weight: &Packed) -> Result<()> {
    const NAME: &str = "packed product";
    let shape = weight.shape();
    float(NAME, x.dtype())?;
    let fitting = shape.len() == 2 && x.ndim() > 0 && x.shape().last() == shape.last();
    fits(NAME, &format!("x is [.., in] for a matrix of {shape:?}"), &[("x", x)], fitting)
}

/// That `x` and `chosen` fit packed matrices.
pub(crate) fn gathered_product(x: &Array, weight: &Packed, chosen: &Array) -> Result<()> {
    const NAME: &str = "gathered product";
    float(NAME, x.dtype())?;
    gathered(NAME, x, &weight.shape(), chosen)
}

/// That `x` is `[.., rows, in]`, and `chosen` names matrices of `shape` for its leading axes.
fn gathered(operation: &str, x: &Array, shape: &[i32], chosen: &Array) -> Result<()> {
    dtype(operation, "chosen", chosen, Dtype::Uint32)?;
    let (found, names) = (x.shape(), chosen.shape());
    let fitting = shape.len() == 3
        && found.len() == names.len() + 2
        && found.last() == shape.last()
        && found.iter().zip(names).all(|(&it, &all)| it == 1 || it == all);
    let expected = format!("x is [chosen.. or 1, rows, in] for matrices of {shape:?}");
    fits(operation, &expected, &[("x", x), ("chosen", chosen)], fitting)
}

/// Experts whose gate and up are gated: two matrices of one shape, or one with the rows of both.
pub(crate) fn halves(weights: &[Vec<i32>]) -> Result<()> {
    match weights {
        [gate, up] => pair(gate, up),
        [both] if both.len() == 3 && both[1] % 2 == 0 => Ok(()),
        _ => Err(Exception::custom(format!(
            "gated product: expected matrices of gate and up, or one with the rows of both, found {weights:?}"
        ))),
    }
}

/// That `x` is `[.., in]`, and `chosen` names matrices of `shape` for each row of it.
pub(crate) fn gathered_gate(x: &Array, shape: &[i32], chosen: &Array) -> Result<()> {
    const NAME: &str = "gathered gate";
    dtype(NAME, "x", x, Dtype::Float32)?;
    dtype(NAME, "chosen", chosen, Dtype::Uint32)?;
    let (found, names) = (x.shape(), chosen.shape());
    let fitting = shape.len() == 3
        && found.len() == names.len()
        && found.last() == shape.last()
        && found[..found.len().saturating_sub(1)] == names[..names.len().saturating_sub(1)];
    let expected = format!("x is [tokens.., in], chosen [tokens.., any] for matrices of {shape:?}");
    fits(NAME, &expected, &[("x", x), ("chosen", chosen)], fitting)
}

/// That each place of `chosen` has a row of `x`, a matrix and a share.
pub(crate) fn mixed(x: &Array, shape: &[i32], chosen: &Array, shares: &Array) -> Result<()> {
    const NAME: &str = "mixed product";
    dtype(NAME, "x", x, Dtype::Float32)?;
    dtype(NAME, "chosen", chosen, Dtype::Uint32)?;
    dtype(NAME, "shares", shares, Dtype::Float32)?;
    let (found, names) = (x.shape(), chosen.shape());
    let fitting = shape.len() == 3
        && found.split_last() == shape.last().map(|of_shape| (of_shape, names))
        && shares.shape() == names
        && names.last().is_some_and(|&it| it > 0);
    let expected = format!(
        "x is [tokens.., chosen, in] for matrices of {shape:?}, and chosen and shares are [tokens.., chosen]"
    );
    fits(NAME, &expected, &[("x", x), ("chosen", chosen), ("shares", shares)], fitting)
}

/// That a matrix is bf16.
pub(crate) fn narrow(weight: &Array) -> Result<()> {
    dtype("widening product", "weight", weight, Dtype::Bfloat16)
}

/// That there are as many experts as a routing needs, in groups of equal size.
pub(crate) fn route(logits: &Array, correction: Option<&Array>, how: &Routing) -> Result<()> {
    const NAME: &str = "routing";
    let mut arrays = vec![("logits", logits)];
    arrays.extend(correction.map(|it| ("correction", it)));
    for &(name, array) in &arrays {
        dtype(NAME, name, array, Dtype::Float32)?;
    }
    let experts = logits.shape().last().map_or(0, |&it| it as usize);
    let one_each = |it: &Array| it.size() == experts && it.shape().last() == logits.shape().last();
    let fitting = experts > 0 && correction.is_none_or(one_each);
    fits(NAME, "logits are [.., experts], the correction [1.., experts]", &arrays, fitting)?;
    let (from, grouped) = match how.groups {
        None => (experts, true),
        Some(it) => {
            let size = experts.checked_div(it.count).unwrap_or(0);
            let judged = (1..=size).contains(&it.judged_by) && it.kept <= it.count;
            (it.kept.saturating_mul(size), judged && size * it.count == experts)
        }
    };
    if grouped && (1..=from).contains(&how.chosen) {
        return Ok(());
    }
    let what =
        format!("{NAME}: there are {experts} experts, too few for {how:?}, or in unequal groups");
    Err(Exception::custom(what))
}

pub(crate) fn float(operation: &str, dtype: Dtype) -> Result<()> {
    if dtype.is_float() {
        return Ok(());
    }
    Err(Exception::custom(format!("{operation}: {dtype:?} is not a floating-point type")))
}
