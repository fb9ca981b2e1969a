//! Recurrences over one matrix per head: gated linear attention, and the gated delta rule.
//!
//! A head's state `S` fades and is written to: `S ← eᵍ S + k vᵀ`, and what it holds under the query is the
//! output, `Sᵀq` (Mamba-2 is of this form: Dao & Gu, 2024, *Transformers are SSMs*). By the delta rule
//! what the state holds under the key is moved towards the value instead, `S ← eᵍ S`, then
//! `S ← S + k β (v - Sᵀk)ᵀ` (Yang, Kautz & Hatamizadeh, 2024, *Gated Delta Networks*). A state fades as a
//! whole, or each of its rows by itself (*Kimi Linear*, 2025).
//!
//! One token is computed as that. Several are computed in chunks, by products of matrices and as many
//! steps one after another as there are chunks; the corrections of the delta rule all follow from one
//! triangular system per chunk. On the CPU an operation of our own takes them one after another instead.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{
        arange, concatenate, eye,
        indexing::{Ellipsis, TryIndexOp},
        pad, rsqrt, select, zeros_dtype,
    },
};

/// Tokens per chunk, as in transformers.
const CHUNK: i32 = 64;

/// The same where each row of a state fades by itself: what is left between two tokens is then a vector.
const CHUNK_BY_ROW: i32 = 16;

/// What the tokens bring, all in fp32. Consecutive value heads share a key head.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// `[batch, tokens, key heads, key dim]`.
    pub(crate) queries: Array,
    /// `[batch, tokens, key heads, key dim]`.
    pub(crate) keys: Array,
    /// `[batch, tokens, value heads, value dim]`.
    pub(crate) values: Array,
    /// `g`, at most 0: `[batch, tokens, value heads, 1]`, or with one number per row of the state,
    /// `[batch, tokens, value heads, key dim]`.
    pub(crate) log_decays: Array,
    /// `β`: `[batch, tokens, value heads, 1]`; without it values are written as they are.
    pub(crate) rates: Option<Array>,
    /// Whether queries and keys are brought to length 1 first, and queries then divided by the root of
    /// their dimension.
    pub(crate) unit: bool,
}

/// The outputs, `[batch, tokens, value heads, value dim]`, and the state after the last token, both from the
/// state before the first, `[batch, key heads, groups, key dim, value dim]`, in MLX's operations.
pub(crate) fn composed(tokens: &Tokens, state: &Array) -> MlxResult<(Array, Array)> {
    let heads = Heads::new(tokens)?;
    let (outputs, state) = match tokens.queries.dim(1) {
        1 => step(&heads, state)?,
        count => chunks(&heads, count, state)?,
    };
    let outputs = outputs.transpose_axes(&[0, 3, 1, 2, 4])?.reshape(tokens.values.shape())?;
    Ok((outputs, state))
}

/// The same by heads, `[batch, key heads, groups, tokens, numbers]`; of queries and keys there is one group.
#[derive(Debug)]
struct Heads {
    queries: Array,
    keys: Array,
    values: Array,
    log_decays: Array,
    rates: Option<Array>,
}

impl Heads {
    fn new(tokens: &Tokens) -> MlxResult<Self> {
        let Tokens { queries, keys, values, log_decays, rates, unit } = tokens;
        let [batch, count, heads, dim] = [0, 1, 2, 3].map(|axis| queries.dim(axis));
        let by_head = |it: &Array| {
            it.reshape(&[batch, count, heads, it.dim(2) / heads, it.dim(3)])?
                .transpose_axes(&[0, 2, 3, 1, 4])
        };
        let of_length = |it: &Array, length: f32| {
            let it = by_head(it)?;
            if !unit {
                return Ok(it);
            }
            let square = it.square()?.sum_axis(-1, true)?.add(Array::from_f32(1e-6))?;
            it.multiply(rsqrt(square)?.multiply(Array::from_f32(length))?)
        };
        Ok(Self {
            queries: of_length(queries, (dim as f32).powf(-0.5))?,
            keys: of_length(keys, 1.0)?,
            values: by_head(values)?,
            log_decays: by_head(log_decays)?,
            rates: rates.as_ref().map(by_head).transpose()?,
        })
    }
}

/// One token. The state is read once, for the query and the key together: `Sᵀq` after `δ` is written is
/// `eᵍ Sᵀq + (k·q) δ`.
fn step(tokens: &Heads, state: &Array) -> MlxResult<(Array, Array)> {
    let Heads { queries, keys, values, log_decays, rates } = tokens;
    let decay = log_decays.exp()?;
    if decay.dim(-1) > 1 {
        return step_by_row(tokens, &decay, state);
    }
    let (by_query, change) = match rates {
        None => (queries.matmul(state)?.multiply(&decay)?, values.clone()),
        Some(rates) => {
            let read = concatenate(&[queries, keys], -2)?.matmul(state)?.multiply(&decay)?;
            let (by_query, by_key) = halves(&read)?;
            (by_query, values.subtract(by_key)?.multiply(rates)?)
        }
    };
    let own = queries.multiply(keys)?.sum_axis(-1, true)?;
    let outputs = by_query.add(own.multiply(&change)?)?;
    let written = keys.swap_axes(-1, -2)?.multiply(&change)?;
    Ok((outputs, state.multiply(&decay)?.add(written)?))
}

/// As [`step`], where the rows of the state fade unlike each other, so that it has to fade first.
fn step_by_row(tokens: &Heads, decay: &Array, state: &Array) -> MlxResult<(Array, Array)> {
    let Heads { queries, keys, values, rates, .. } = tokens;
    let faded = state.multiply(decay.swap_axes(-1, -2)?)?;
    let (by_query, change) = match rates {
        None => (queries.matmul(&faded)?, values.clone()),
        Some(rates) => {
            let read = concatenate(&[queries, keys], -2)?.matmul(&faded)?;
            let (by_query, by_key) = halves(&read)?;
            (by_query, values.subtract(by_key)?.multiply(rates)?)
        }
    };
    let own = queries.multiply(keys)?.sum_axis(-1, true)?;
    let written = keys.swap_axes(-1, -2)?.multiply(&change)?;
    Ok((by_query.add(own.multiply(&change)?)?, faded.add(written)?))
}

/// Any number of tokens, with as many steps one after another as there are chunks.
fn chunks(tokens: &Heads, count: i32, state: &Array) -> MlxResult<(Array, Array)> {
    let by_row = tokens.log_decays.dim(-1) > 1;
    let most = if by_row { CHUNK_BY_ROW } else { CHUNK };
    let size = (count as u32).next_power_of_two().clamp(BLOCK as u32, most as u32) as i32;
    let chunks = (count + size - 1) / size;
    // What is filled up with zeros writes nothing and fades nothing.
    let cut = |it: &Array| {
        let missing = chunks * size - count;
        let whole = match missing {
            0 => it.clone(),
            _ => pad(it, &[(0, 0), (0, 0), (0, 0), (0, missing), (0, 0)][..], None, None)?,
        };
        let [batch, heads, groups, width] = [0, 1, 2, 4].map(|axis| it.dim(axis));
        whole.reshape(&[batch, heads, groups, chunks, size, width])
    };
    let (queries, keys, values) = (cut(&tokens.queries)?, cut(&tokens.keys)?, cut(&tokens.values)?);

    // What is left at a place (row) of what was written at another (column): e^(c_i - c_j), c being the
    // sum of g up to there.
    let total = cut(&tokens.log_decays)?.cumsum(-2, None, None)?;
    let places = arange::<_, i32>(0, size, None)?;
    let (rows, columns) = (places.expand_dims(1)?, places.expand_dims(0)?);
    let (between, is_before) = if by_row {
        let between = total.expand_dims(-2)?.subtract(total.expand_dims(-3)?)?;
        (between, columns.le(&rows)?.expand_dims(-1)?)
    } else {
        (total.subtract(total.swap_axes(-1, -2)?)?, columns.le(&rows)?)
    };
    let left = select(&is_before, &between, Array::from_f32(f32::NEG_INFINITY))?.exp()?;
    let fade = total.exp()?;
    let facing = keys.swap_axes(-1, -2)?;
    // Products with the keys, times what there is of rates, and of which so much is left.
    let products = |it: &Array, rates: Option<&Array>| {
        let rated = |it: Array| rates.map_or(Ok(it.clone()), |rates| it.multiply(rates));
        if by_row {
            let each = it.expand_dims(-2)?.multiply(keys.expand_dims(-3)?)?;
            rated(each.multiply(&left)?.sum_axis(-1, false)?)
        } else {
            rated(it.matmul(&facing)?)?.multiply(&left)
        }
    };
    let within = products(&queries, None)?;
    let end = total.try_index((Ellipsis, size - 1..size, ..))?;
    let writers = keys.multiply(end.subtract(&total)?.exp()?)?.swap_axes(-1, -2)?;
    let by_query = queries.multiply(&fade)?;

    // By the delta rule what a token writes follows from those before it in the chunk and from the
    // state: (I + L) Δ = β (v - e^c Sᵀk), with L_ij = β_i (k_i · k_j) e^(c_i - c_j) below the diagonal.
    let (written, readers) = match &tokens.rates {
        None => (values, by_query),
        Some(rates) => {
            let rates = cut(rates)?;
            let alike = products(&keys, Some(&rates))?;
            let below = select(columns.lt(&rows)?, &alike, Array::from_f32(0.0))?;
            let solved = unit_lower_inverse(&below)?;
            let by_key = solved.matmul(keys.multiply(rates.multiply(&fade)?)?)?;
            (solved.matmul(values.multiply(&rates)?)?, concatenate(&[&by_query, &by_key], -2)?)
        }
    };

    let parts = |it: &Array| it.split_equal(chunks, 3);
    let (written, readers, within) = (parts(&written)?, parts(&readers)?, parts(&within)?);
    let (writers, fades) = (parts(&writers)?, parts(&end.exp()?.swap_axes(-1, -2)?)?);
    let mut state = state.expand_dims(3)?;
    let mut outputs = Vec::with_capacity(written.len());
    for chunk in 0..written.len() {
        let read = readers[chunk].matmul(&state)?;
        let (by_query, change) = match &tokens.rates {
            None => (read, written[chunk].clone()),
            Some(_) => {
                let (by_query, by_key) = halves(&read)?;
                (by_query, written[chunk].subtract(by_key)?)
            }
        };
        outputs.push(by_query.add(within[chunk].matmul(&change)?)?);
        state = state.multiply(&fades[chunk])?.add(writers[chunk].matmul(&change)?)?;
    }
    let outputs = concatenate(&outputs, 3)?;
    let [batch, heads, groups, width] = [0, 1, 2, 5].map(|axis| outputs.dim(axis));
    let outputs = outputs.reshape(&[batch, heads, groups, chunks * size, width])?;
    let outputs = outputs.try_index((.., .., .., ..count, ..))?;
    Ok((outputs, state.squeeze_axes(&[3])?))
}

/// The upper and the lower half of a matrix's rows.
fn halves(matrix: &Array) -> MlxResult<(Array, Array)> {
    let halves = matrix.split_equal(2, -2)?;
    Ok((halves[0].clone(), halves[1].clone()))
}

/// Up to this size a triangular matrix is inverted as the sum of its powers, whose terms stay small.
const BLOCK: i32 = 4;

/// `(I + L)⁻¹` of matrices `[.., n, n]` with nothing on and above the diagonal, `n` being 4 times a
/// power of two.
///
/// The blocks on the diagonal are inverted first, and then put together in pairs,
/// `[[A, 0], [B, D]]⁻¹ = [[A⁻¹, 0], [-D⁻¹ B A⁻¹, D⁻¹]]`: substitution in blocks, which MLX computes on
/// every device, where its own solver is for the CPU alone.
fn unit_lower_inverse(lower: &Array) -> MlxResult<Array> {
    let shape = lower.shape().to_vec();
    let size = lower.dim(-1);
    let lower = lower.reshape(&[-1, size, size])?;
    let count = lower.dim(0);

    // I + N + N² + N³ for N = -L
    let blocks = size / BLOCK;
    let diagonal = lower
        .reshape(&[count, blocks, BLOCK, blocks, BLOCK])?
        .diagonal(0, 1, 3)?
        .transpose_axes(&[0, 3, 1, 2])?
        .negative()?;
    let identity = eye::<f32>(BLOCK, None, None)?;
    let squared = diagonal.matmul(&diagonal)?.add(&identity)?;
    let mut inverse = diagonal.add(&identity)?.matmul(&squared)?;

    let mut block = BLOCK;
    while block < size {
        let pairs = size / block / 2;
        let corner = lower
            .reshape(&[count, pairs, 2, block, pairs, 2, block])?
            .try_index((.., .., 1, .., .., 0, ..))?
            .diagonal(0, 1, 3)?
            .transpose_axes(&[0, 3, 1, 2])?;
        let both = inverse.reshape(&[count, pairs, 2, block, block])?;
        let (upper, under) =
            (both.try_index((.., .., 0, .., ..))?, both.try_index((.., .., 1, .., ..))?);
        let corner = under.matmul(corner.matmul(&upper)?)?.negative()?;
        let nothing = zeros_dtype(corner.shape(), corner.dtype())?;
        let top = concatenate(&[&upper, &nothing], -1)?;
        inverse = concatenate(&[&top, &concatenate(&[&corner, &under], -1)?], -2)?;
        block *= 2;
    }
    inverse.reshape(&shape)
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Dtype, ops::sigmoid, random};

    use super::*;
    use crate::backend::Backend;

    fn noise(seed: u64, shape: &[i32]) -> Array {
        random::normal::<f32>(shape, None, None, &random::key(seed).unwrap()).unwrap()
    }

    fn worst(a: &Array, b: &Array) -> f32 {
        assert_eq!(a.shape(), b.shape());
        a.subtract(b).unwrap().abs().unwrap().max(None).unwrap().try_item_exact().unwrap()
    }

    /// Two rows, two key heads, three value heads each.
    fn tokens(count: i32, repeated: bool, delta: bool, by_row: bool) -> Tokens {
        let unit = |seed| {
            let x = noise(seed, &[2, if repeated { 1 } else { count }, 2, 8]);
            let x = x.divide(x.square().unwrap().sum_axis(-1, true).unwrap().sqrt().unwrap());
            mlx_rs::ops::broadcast_to(x.unwrap(), &[2, count, 2, 8]).unwrap()
        };
        let per_token = |seed| noise(seed, &[2, count, 6, 1]);
        let of_row = |seed| noise(seed, &[2, count, 6, if by_row { 8 } else { 1 }]);
        // Equal keys that are written fully and do not fade are what is hardest to solve.
        let (fading, shift) = if repeated { (-1e-4, 6.0) } else { (-0.3, 0.0) };
        Tokens {
            queries: unit(1),
            keys: unit(2),
            values: noise(3, &[2, count, 6, 6]),
            log_decays: of_row(4).square().unwrap().multiply(Array::from_f32(fading)).unwrap(),
            rates: delta
                .then(|| sigmoid(per_token(5).add(Array::from_f32(shift)).unwrap()).unwrap()),
            unit: false,
        }
    }

    fn one(all: &Tokens, at: i32) -> Tokens {
        let of = |it: &Array| it.try_index((.., at..at + 1)).unwrap();
        Tokens {
            queries: of(&all.queries),
            keys: of(&all.keys),
            values: of(&all.values),
            log_decays: of(&all.log_decays),
            rates: all.rates.as_ref().map(of),
            unit: all.unit,
        }
    }

    /// A step is compared with its definition, and chunks with steps: of lengths that a chunk divides
    /// and does not, and of equal keys, which a sum of powers could not cope with.
    #[test]
    fn chunks_and_steps_follow_the_definition() {
        for (count, repeated, delta, by_row) in [
            (2, false, true, false),
            (3, false, false, false),
            (7, false, true, false),
            (64, false, true, false),
            (64, true, true, false),
            (150, false, true, false),
            (150, false, false, false),
            (200, true, true, false),
            (2, false, true, true),
            (16, true, true, true),
            (50, false, true, true),
            (50, false, false, true),
        ] {
            let case =
                format!("{count} tokens, repeated {repeated}, delta {delta}, by row {by_row}");
            let all = tokens(count, repeated, delta, by_row);
            let start = noise(9, &[2, 2, 3, 8, 6]);
            let (outputs, end) = composed(&all, &start).unwrap();
            let (mut stepped, mut defined) = (start.clone(), start);
            for at in 0..count {
                let token = one(&all, at);
                let (output, after) = composed(&token, &stepped).unwrap();
                stepped = after;

                let token = Heads::new(&token).unwrap();
                let column = |it: &Array| it.swap_axes(-1, -2).unwrap();
                let (q, k) = (column(&token.queries), column(&token.keys));
                let decay = column(&token.log_decays).exp().unwrap();
                let faded = defined.multiply(decay).unwrap();
                let change = match &token.rates {
                    None => token.values.clone(),
                    Some(rates) => {
                        let held = faded.multiply(&k).unwrap().sum_axis(-2, true).unwrap();
                        token.values.subtract(held).unwrap().multiply(rates).unwrap()
                    }
                };
                defined = faded.add(k.multiply(change).unwrap()).unwrap();
                let expected = defined.multiply(&q).unwrap().sum_axis(-2, true).unwrap();
                let expected = expected.reshape(&[2, 1, 6, 6]).unwrap();
                assert!(worst(&output, &expected) < 1e-5, "{case}: step {at}");
                let chunked = outputs.try_index((.., at..at + 1)).unwrap();
                let off = worst(&chunked, &expected);
                assert!(off < 1e-5, "{case}: {off} at {at}");
            }
            assert!(worst(&end, &defined) < 1e-5, "{case}");
            assert!(worst(&stepped, &defined) < 1e-5, "{case}");
        }
    }

    /// What is computed on the CPU against what is computed elsewhere, one after another and in chunks.
    #[test]
    fn the_backend_of_a_cpu_agrees_with_chunks() {
        let backend = Backend::new(Dtype::Float32).unwrap();
        for count in [1, 5, 63, 130] {
            for (delta, by_row) in [(true, false), (false, false), (true, true), (false, true)] {
                let all = Tokens { unit: true, ..tokens(count, false, delta, by_row) };
                let start = noise(9, &[2, 2, 3, 8, 6]);
                let (theirs, their_end) = backend.recur(&all, &start, true).unwrap();
                let (ours, our_end) = backend.recur(&all, &start, false).unwrap();
                let case = format!("{count} tokens, delta {delta}, by row {by_row}");
                assert!(worst(&ours, &theirs) < 1e-5, "{case}");
                assert!(worst(&our_end, &their_end) < 1e-5, "{case}");
            }
        }
    }
}
