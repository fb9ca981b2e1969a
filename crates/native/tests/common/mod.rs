//! Inputs in every layout, and the comparison of an operation with what it is made of.

#![allow(dead_code, reason = "each test uses a part of it")]

use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{
        broadcast_to, concatenate,
        indexing::{Ellipsis, IntoStrideBy, TryIndexOp},
    },
    random,
    transforms::{fallible_vjp as vjp, grad},
};
use mlxgk_native::Native;

/// What an operation computes from its inputs.
pub(crate) type Operation<'a> = &'a dyn Fn(&[Array]) -> Result<Array>;

/// The operations, which these tests are compiled only with.
pub(crate) fn native() -> Native {
    Native::new().unwrap()
}

/// Normally distributed numbers.
pub(crate) fn noise(seed: u64, shape: &[i32]) -> Array {
    random::normal::<f32>(shape, None, None, &random::key(seed).unwrap()).unwrap()
}

/// Normally distributed numbers in bf16, small enough for sums of thousands.
pub(crate) fn bf16_noise(seed: u64, shape: &[i32]) -> Array {
    let small = noise(seed, shape).multiply(Array::from_f32(0.05)).unwrap();
    small.as_dtype(Dtype::Bfloat16).unwrap()
}

/// The numbers, row after row.
pub(crate) fn values(array: &Array) -> Vec<f32> {
    row_major(&array.as_dtype(Dtype::Float32).unwrap()).try_as_slice::<f32>().unwrap().to_vec()
}

/// Holds that two arrays are equal up to rounding, which is coarse in bf16.
#[track_caller]
pub(crate) fn assert_close(ours: &Array, theirs: &Array, what: &str) {
    assert_eq!(ours.shape(), theirs.shape(), "{what}");
    let tolerance = if ours.dtype() == Dtype::Bfloat16 { 1.0 / 128.0 } else { 2e-5 };
    for (at, (a, b)) in values(ours).into_iter().zip(values(theirs)).enumerate() {
        let close = (a - b).abs() <= tolerance * b.abs().max(1.0);
        assert!(close, "{what}: number {at} is {a}, must be {b}");
    }
}

/// Holds an operation against what it is made of: with each of its inputs in every layout, all of
/// them in each, with each broadcast along any of its axes, and in the gradients.
#[track_caller]
pub(crate) fn assert_same(
    what: &str,
    ours: Operation<'_>,
    theirs: Operation<'_>,
    inputs: &[Array],
) {
    let compare = |inputs: &[Array], how: &str| {
        let (ours, theirs) = (ours(inputs).unwrap(), theirs(inputs).unwrap());
        assert_close(&ours, &theirs, &format!("{what}, {how}"));
    };
    compare(inputs, "as made");
    for layout in LAYOUTS {
        let all: Vec<Array> = inputs.iter().map(|it| (layout.of)(it)).collect();
        compare(&all, &format!("all {}", layout.name));
        for (at, changed) in all.into_iter().enumerate() {
            compare(&with(inputs, at, changed), &format!("input {at} {}", layout.name));
        }
    }
    for (at, input) in inputs.iter().enumerate() {
        for axes in 1..1 << input.ndim() {
            let changed = broadcast(input, axes);
            compare(&with(inputs, at, changed), &format!("input {at} broadcast by {axes:#b}"));
        }
    }
    for (at, input) in inputs.iter().enumerate().filter(|(_, it)| it.dtype() != Dtype::Bool) {
        for layout in LAYOUTS {
            let input = (layout.of)(input);
            let gradient = |operation: Operation<'_>| {
                let loss =
                    |it: &Array| operation(&with(inputs, at, it.clone()))?.square()?.sum(None);
                grad(loss)(&input).unwrap()
            };
            let how = format!("{what}, gradient of input {at} {}", layout.name);
            assert_close(&gradient(ours), &gradient(theirs), &how);
        }
        // What a gradient is taken from lies in memory in any way, too.
        for layout in LAYOUTS {
            let by = (layout.of)(&noise(9, theirs(inputs).unwrap().shape()));
            let gradient = |operation: Operation<'_>| {
                let found = |it: &[Array]| Ok(vec![operation(&with(inputs, at, it[0].clone()))?]);
                let (_, by_inputs) =
                    vjp(found, std::slice::from_ref(input), std::slice::from_ref(&by)).unwrap();
                by_inputs[0].clone()
            };
            let how = format!("{what}, gradient of input {at} from one {}", layout.name);
            assert_close(&gradient(ours), &gradient(theirs), &how);
        }
    }
}

/// Holds the gradient of an operation's gradient against that of what it is made of.
#[track_caller]
pub(crate) fn assert_same_twice(
    what: &str,
    ours: Operation<'_>,
    theirs: Operation<'_>,
    inputs: &[Array],
) {
    for (at, input) in inputs.iter().enumerate() {
        let gradient = |operation: Operation<'_>| {
            let loss = |it: &Array| operation(&with(inputs, at, it.clone()))?.square()?.sum(None);
            let first = |it: &Array| grad(loss)(it)?.square()?.sum(None);
            grad(first)(input).unwrap()
        };
        let how = format!("{what}, gradient of the gradient of input {at}");
        assert_close(&gradient(ours), &gradient(theirs), &how);
    }
}

fn with(inputs: &[Array], at: usize, changed: Array) -> Vec<Array> {
    let mut inputs = inputs.to_vec();
    inputs[at] = changed;
    inputs
}

/// A way to lie in memory.
struct Layout {
    name: &'static str,
    of: fn(&Array) -> Array,
}

const LAYOUTS: &[Layout] = &[
    Layout { name: "row-major", of: row_major },
    Layout { name: "transposed", of: transposed },
    Layout { name: "cut out", of: cut_out },
    Layout { name: "backwards", of: backwards },
    Layout { name: "every other", of: every_other },
];

fn row_major(array: &Array) -> Array {
    let copy = array.contiguous().unwrap();
    copy.eval().unwrap();
    copy
}

/// The first axis is the innermost.
fn transposed(array: &Array) -> Array {
    row_major(&array.t()).t()
}

/// From the middle of a larger array.
fn cut_out(array: &Array) -> Array {
    let mut larger = array.clone();
    for axis in 0..array.ndim() as i32 {
        let edge = larger.take_axis(Array::from_slice(&[0_i32], &[1]), axis).unwrap();
        larger = concatenate(&[&edge, &larger, &edge], axis).unwrap();
    }
    let mut larger = row_major(&larger);
    for axis in 0..array.ndim() as i32 {
        larger = larger.split_at_indices(&[1, 1 + array.dim(axis)], axis).unwrap().swap_remove(1);
    }
    larger
}

/// The last axis has a step of -1.
fn backwards(array: &Array) -> Array {
    let turned = |it: &Array| it.try_index((Ellipsis, (..).stride_by(-1))).unwrap();
    turned(&row_major(&turned(array)))
}

/// The last axis has a step of 2.
fn every_other(array: &Array) -> Array {
    let pair = array.expand_dims(-1).unwrap();
    let pairs = row_major(&concatenate(&[&pair, &pair], -1).unwrap());
    pairs.try_index((Ellipsis, 0)).unwrap()
}

/// The first place of the axes whose bits are set, for all their places.
fn broadcast(array: &Array, axes: i32) -> Array {
    let mut first = array.clone();
    for axis in (0..array.ndim() as i32).filter(|axis| axes >> axis & 1 == 1) {
        first = first.take_axis(Array::from_slice(&[0_i32], &[1]), axis).unwrap();
    }
    broadcast_to(row_major(&first), array.shape()).unwrap()
}
