//! Attention on packed keys and values against a loop over the numbers they stand for.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_close, assert_same, native, noise, values};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    fast::ScaledDotProductAttentionMask as Mask,
    ops::{arange, concatenate, dequantize, indexing::TryIndexOp, quantize, zeros_dtype},
};
use mlxgk_native::{Packed, Quantization};

const SCALE: f32 = 0.3;

/// Sizes of a call.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: i32,
    heads: i32,
    groups: i32,
    tokens: i32,
    columns: i32,
    dim: i32,
}

fn sizes(heads: i32, groups: i32, tokens: i32, columns: i32, dim: i32) -> Sizes {
    Sizes { batch: 2, heads, groups, tokens, columns, dim }
}

/// How a call sees.
#[derive(Debug, Clone, Copy)]
enum Seen<'a> {
    All,
    Causal,
    /// `[batch, heads, tokens, columns]` or what broadcasts to it.
    Mask(&'a Array),
}

impl<'a> Seen<'a> {
    fn mask(self) -> Option<Mask<'a>> {
        match self {
            Self::All => None,
            Self::Causal => Some(Mask::Causal),
            Self::Mask(it) => Some(Mask::Array(it)),
        }
    }
}

/// Numbers as a cache packs them, with scales and biases in `dtype`.
fn packed(numbers: &Array, group: i32, bits: i32, dtype: Dtype) -> Packed {
    let (words, scales, biases) = quantize(numbers, group, bits).unwrap();
    let [scales, biases] = [scales, biases].map(|it| it.as_dtype(dtype).unwrap());
    Packed::new(words, scales, Some(biases), Quantization::affine(group, bits).unwrap()).unwrap()
}

/// Queries, keys and values.
struct Call {
    sizes: Sizes,
    queries: Array,
    keys: Packed,
    values: Packed,
}

impl Call {
    fn new(sizes: Sizes, group: i32, bits: i32, dtype: Dtype) -> Self {
        let Sizes { batch, heads, groups, tokens, columns, dim } = sizes;
        let kept = |seed| packed(&noise(seed, &[batch, groups, columns, dim]), group, bits, dtype);
        let queries = noise(1, &[batch, heads, tokens, dim]);
        Self { sizes, queries, keys: kept(2), values: kept(3) }
    }

    fn ours(&self, seen: Seen<'_>, cap: Option<f32>) -> Array {
        let mask = seen.mask();
        let Self { queries, keys, values, .. } = self;
        native().packed_attention(queries, keys, values, SCALE, mask, cap).unwrap()
    }

    /// The formula in fp64, one number at a time.
    fn by_hand(&self, seen: Seen<'_>, cap: Option<f32>) -> Array {
        let Sizes { batch, heads, groups, tokens, columns, dim } = self.sizes;
        let queries = values(&self.queries);
        let [keys, held] =
            [&self.keys, &self.values].map(|it| values(&it.dequantized(Dtype::Float32).unwrap()));
        let shape = [batch, heads, tokens, columns];
        let shown = match seen {
            Seen::Mask(it) => {
                let full = mlx_rs::ops::broadcast_to(it, &shape).unwrap();
                values(&full.as_dtype(Dtype::Float32).unwrap())
            }
            _ => vec![1.0; shape.iter().product::<i32>() as usize],
        };
        let [heads, groups, tokens, columns, dim] =
            [heads, groups, tokens, columns, dim].map(|it| it as usize);
        let mut mixed = Vec::new();
        for at in 0..batch as usize * heads * tokens {
            let (row, head, token) = (at / tokens / heads, at / tokens % heads, at % tokens);
            let first = (row * groups + head / (heads / groups)) * columns;
            let query = &queries[at * dim..(at + 1) * dim];
            let column = |of: &[f32], at: usize| of[(first + at) * dim..][..dim].to_vec();
            let is_seen = |it: usize| match seen {
                Seen::Causal => it + tokens <= columns + token,
                _ => shown[at * columns + it] > 0.0,
            };
            let score = |it: usize| {
                if !is_seen(it) {
                    return f64::NEG_INFINITY;
                }
                let products = query.iter().zip(column(&keys, it));
                let sum: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(b)).sum();
                let scaled = sum * f64::from(SCALE);
                cap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = (0..columns).map(score).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = scores.iter().map(|it| (it - top).exp()).collect();
            let total: f64 = powers.iter().sum();
            let mut sums = vec![0.0; dim];
            for (it, power) in powers.iter().enumerate().filter(|(_, power)| **power > 0.0) {
                for (sum, value) in sums.iter_mut().zip(column(&held, it)) {
                    *sum += power / total * f64::from(value);
                }
            }
            mixed.extend(sums.into_iter().map(|it| it as f32));
        }
        Array::from_slice(&mixed, self.queries.shape())
    }
}

/// A mask in which every row sees its first column, and others at random.
fn mask(shape: &[i32]) -> Array {
    let first = arange::<i32, i32>(0, shape[shape.len() - 1], 1).unwrap();
    let first = first.eq(Array::from_int(0)).unwrap();
    noise(4, shape).gt(Array::from_f32(0.0)).unwrap().logical_or(first).unwrap()
}

const WIDTHS: [i32; 6] = [2, 3, 4, 5, 6, 8];

#[test]
fn every_width_is_attention_over_the_numbers_it_stands_for() {
    for bits in WIDTHS {
        for (group, dim) in [(32, 32), (32, 96), (64, 64), (64, 128), (128, 256)] {
            for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
                let call = Call::new(sizes(4, 2, 1, 77, dim), group, bits, dtype);
                let what = format!("{bits} bits in groups of {group}, {dim} numbers, {dtype:?}");
                let expected = call.by_hand(Seen::All, None);
                assert_close(&call.ours(Seen::All, None), &expected, &what);
            }
        }
    }
}

/// A decoded token, a few (beams' and drafts' are as these), as many as one stretch takes at most, and
/// more; one column to several parts of them.
const SHAPES: [(i32, i32, i32, i32, i32); 8] = [
    (4, 4, 1, 1, 32),
    (2, 1, 3, 3, 64),
    (6, 2, 1, 513, 32),
    (8, 2, 4, 700, 64),
    (3, 3, 7, 33, 160),
    (16, 1, 1, 1100, 32),
    (6, 3, 12, 40, 32),
    (4, 2, 70, 530, 64),
];

#[test]
fn it_sees_what_it_is_shown() {
    for bits in [3, 4, 8] {
        for (heads, groups, tokens, columns, dim) in SHAPES {
            let sizes = sizes(heads, groups, tokens, columns, dim);
            let call = Call::new(sizes, 32, bits, Dtype::Float32);
            let full = mask(&[2, heads, tokens, columns]);
            let ragged = mask(&[2, 1, tokens, columns]);
            let window = mask(&[columns]);
            for (how, seen, cap) in [
                ("all", Seen::All, None),
                ("capped", Seen::All, Some(3.0)),
                ("causal", Seen::Causal, Some(3.0)),
                ("a mask", Seen::Mask(&full), None),
                ("a mask per row", Seen::Mask(&ragged), None),
                ("a mask for all", Seen::Mask(&window), Some(3.0)),
            ] {
                let what = format!("{bits} bits, {sizes:?}, {how}");
                assert_close(&call.ours(seen, cap), &call.by_hand(seen, cap), &what);
            }
        }
    }
}

/// A cache shows a part of what it has room for.
#[test]
fn columns_may_be_cut_out_of_a_block_with_room() {
    for (bits, tokens, from) in [(4, 1, 0), (4, 30, 5), (8, 2, 3), (6, 1, 1), (3, 1, 7)] {
        for dtype in [Dtype::Float32, Dtype::Float16] {
            let call = Call::new(sizes(4, 2, tokens, 90, 64), 32, bits, dtype);
            let cut = |array: &Array| {
                let room = |count: i32| {
                    let shape = [array.dim(0), array.dim(1), count, array.dim(3)];
                    zeros_dtype(&shape, array.dtype()).unwrap()
                };
                let block = concatenate(&[&room(from), array, &room(40)], 2).unwrap();
                block.eval().unwrap();
                block.try_index((.., .., from..from + 90, ..)).unwrap()
            };
            let moved = |it: &Packed| {
                let (words, scales) = (cut(it.words()), cut(it.scales()));
                let biases = it.biases().map(cut);
                Packed::new(words, scales, biases, it.quantization()).unwrap()
            };
            let Call { queries, keys, values, .. } = &call;
            let (keys, values) = (moved(keys), moved(values));
            let found = native().packed_attention(queries, &keys, &values, SCALE, None, None);
            let (found, whole) = (common::values(&found.unwrap()), call.ours(Seen::All, None));
            assert_eq!(found, common::values(&whole), "{bits} bits, {tokens} tokens from {from}");
        }
    }
}

#[test]
fn it_is_the_same_in_every_layout_and_in_the_gradients() {
    // A scale's gradient is a sum of codes, of which wide ones leave more rounding than is allowed.
    for (bits, tokens) in [(4, 1), (3, 3), (2, 20)] {
        let Sizes { batch, heads, groups, columns, dim, .. } = sizes(4, 2, tokens, 25, 64);
        let parts = [2, 3].map(|seed| {
            let numbers = noise(seed, &[batch, groups, columns, dim]);
            quantize(&numbers, 32, bits).unwrap()
        });
        let [(key_words, key_scales, key_biases), (value_words, value_scales, value_biases)] =
            parts;
        let how = Quantization::affine(32, bits).unwrap();
        // The words have no gradient.
        let ours = |it: &[Array]| -> Result<Array> {
            let keys = Packed::new(key_words.clone(), it[1].clone(), Some(it[2].clone()), how)?;
            let values = Packed::new(value_words.clone(), it[3].clone(), Some(it[4].clone()), how)?;
            native().packed_attention(&it[0], &keys, &values, SCALE, None, Some(3.0))
        };
        let theirs = |it: &[Array]| -> Result<Array> {
            let keys = dequantize(&key_words, &it[1], &it[2], 32, bits)?;
            let values = dequantize(&value_words, &it[3], &it[4], 32, bits)?;
            native().attention(&it[0], &keys, &values, SCALE, None, Some(3.0))
        };
        let queries = noise(1, &[batch, heads, tokens, dim]);
        let inputs = [queries, key_scales, key_biases, value_scales, value_biases];
        assert_same(&format!("{bits} bits, {tokens} tokens"), &ours, &theirs, &inputs);

        // Words as columns of something else.
        let turned = |it: &Array| it.swap_axes(1, 3).unwrap().contiguous().unwrap().swap_axes(1, 3);
        let (keys, held) = (turned(&key_words).unwrap(), turned(&value_words).unwrap());
        let keys = Packed::new(keys, inputs[1].clone(), Some(inputs[2].clone()), how).unwrap();
        let held = Packed::new(held, inputs[3].clone(), Some(inputs[4].clone()), how).unwrap();
        let found =
            native().packed_attention(&inputs[0], &keys, &held, SCALE, None, Some(3.0)).unwrap();
        assert_eq!(values(&found), values(&ours(&inputs).unwrap()));
    }
}

#[test]
fn a_row_is_the_same_to_the_last_bit_whatever_is_beside_it() {
    for bits in WIDTHS {
        let Call { queries, keys, values: held, .. } =
            Call::new(sizes(8, 1, 2, 600, 64), 64, bits, Dtype::Float32);
        let first = |heads: i32| {
            let some = queries.try_index((.., ..heads, .., ..)).unwrap();
            let mixed = native().packed_attention(&some, &keys, &held, SCALE, None, None).unwrap();
            values(&mixed.try_index((.., 0, .., ..)).unwrap())
        };
        let alone = first(1);
        for heads in 2..=8 {
            assert_eq!(first(heads), alone, "{bits} bits beside {} others", heads - 1);
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros_and_nothing_gives_nothing() {
    for tokens in [2, 20] {
        let call = Call::new(sizes(2, 1, tokens, 600, 32), 32, 4, Dtype::Float32);
        let rows = arange::<i32, i32>(0, tokens, 1).unwrap();
        let seen = rows.gt(Array::from_int(0)).unwrap().reshape(&[tokens, 1]).unwrap();
        let mixed = values(&call.ours(Seen::Mask(&seen), None));
        assert_eq!(mixed[..32], [0.0; 32]);
        assert!(mixed[32..64].iter().all(|&it| it != 0.0));

        let keys = packed(&noise(1, &[2, 1, 600, 32]), 32, 4, Dtype::Float32);
        let no_rows = |it: &Packed| {
            let none = |it: &Array| it.try_index((..0, .., .., ..)).unwrap();
            let biases = it.biases().map(none);
            Packed::new(none(it.words()), none(it.scales()), biases, it.quantization()).unwrap()
        };
        let keys = no_rows(&keys);
        let queries = noise(1, &[0, 2, tokens, 32]);
        let mixed = native().packed_attention(&queries, &keys, &keys, SCALE, None, None).unwrap();
        mixed.eval().unwrap();
        assert_eq!(mixed.shape(), [0, 2, tokens, 32]);
    }
}

#[test]
fn scales_of_sixteen_bits_are_read_as_they_are() {
    // Subnormal, normal, infinite, and no number.
    let halves = [0.0, -0.0, 6e-8, -3.1e-5, 6.2e-5, 1.0, -2.5, 65504.0, f32::INFINITY, f32::NAN];
    for dtype in [Dtype::Float16, Dtype::Bfloat16] {
        for half in halves {
            let scale = Array::from_f32(half).as_dtype(dtype).unwrap();
            let expected = values(&scale)[0];
            // A single column is its own answer: 0 · scale + bias.
            let words = zeros_dtype(&[1, 1, 1, 4], Dtype::Uint32).unwrap();
            let one = Array::from_f32(1.0).as_dtype(dtype).unwrap().reshape(&[1, 1, 1, 1]).unwrap();
            let bias = scale.reshape(&[1, 1, 1, 1]).unwrap();
            let how = Quantization::affine(32, 4).unwrap();
            let held = Packed::new(words.clone(), one.clone(), Some(bias), how).unwrap();
            let keys = Packed::new(words, one.clone(), Some(one), how).unwrap();
            let queries = noise(1, &[1, 1, 1, 32]);
            let mixed = native().packed_attention(&queries, &keys, &held, SCALE, None, None);
            for found in values(&mixed.unwrap()) {
                let same = found.to_bits() == expected.to_bits()
                    || (found.is_nan() && expected.is_nan())
                    || (found == 0.0 && expected == 0.0);
                assert!(same, "{half} in {dtype:?} is read as {found}, is {expected}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let call = Call::new(sizes(4, 2, 3, 5, 64), 32, 4, Dtype::Float32);
    let Call { queries, keys, values, .. } = &call;
    let refused = |queries: &Array, keys: &Packed, values: &Packed, mask: Option<Mask<'_>>| {
        native().packed_attention(queries, keys, values, SCALE, mask, None).unwrap_err()
    };
    let shaped = |shape: &[i32]| packed(&noise(1, shape), 32, 4, Dtype::Float32);
    for shape in [&[2, 4, 3][..], &[2, 3, 3, 64], &[3, 4, 3, 64], &[2, 4, 3, 32]] {
        let error = refused(&noise(1, shape), keys, values, None);
        assert!(error.what().contains("do not fit: queries are [batch"), "{error}");
    }
    for shape in [&[2, 2, 4, 64][..], &[2, 2, 5, 32], &[2, 5, 64]] {
        for (keys, values) in [(&shaped(shape), values), (keys, &shaped(shape))] {
            let error = refused(queries, keys, values, None);
            assert!(error.what().contains("do not fit: queries are [batch"), "{error}");
        }
    }
    let error = refused(&queries.as_dtype(Dtype::Float16).unwrap(), keys, values, None);
    assert!(error.what().contains("`queries` is Float16, expected Float32"), "{error}");
    for (group, bits) in [(64, 4), (32, 8)] {
        let other = packed(&noise(1, &[2, 2, 5, 64]), group, bits, Dtype::Float32);
        let error = refused(queries, keys, &other, None);
        assert!(error.what().contains("expected one affine mode for both"), "{error}");
    }
    let words = zeros_dtype(&[2, 2, 5, 8], Dtype::Uint32).unwrap();
    let scales = zeros_dtype(&[2, 2, 5, 2], Dtype::Uint8).unwrap();
    let other = Packed::new(words, scales, None, Quantization::MXFP4).unwrap();
    let error = refused(queries, &other, &other, None);
    assert!(error.what().contains("expected one affine mode for both"), "{error}");
    let long = noise(1, &[2, 4, 6, 64]);
    let error = refused(&long, keys, values, Some(Mask::Causal));
    assert!(error.what().contains("needs a column per token"), "{error}");
    let error = refused(queries, keys, values, Some(Mask::Array(&mask(&[3, 1, 5]))));
    assert!(error.what().contains("a mask broadcasts to"), "{error}");
}
