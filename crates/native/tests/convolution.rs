//! The causal convolution against its formula in MLX's operations.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_close, assert_same, native, noise};
use mlx_rs::{
    Array,
    error::Result,
    ops::{concatenate, indexing::TryIndexOp, sigmoid},
};

fn inputs(batch: i32, tokens: i32, width: i32, channels: i32, bias: bool) -> Vec<Array> {
    let mut inputs = vec![
        noise(1, &[batch, tokens, channels]),
        noise(2, &[batch, width - 1, channels]),
        noise(3, &[width, channels]),
    ];
    if bias {
        inputs.push(noise(4, &[channels]));
    }
    inputs
}

fn ours(inputs: &[Array], silu: bool) -> Result<Array> {
    native().causal_convolution(&inputs[0], &inputs[1], &inputs[2], inputs.get(3), silu)
}

fn theirs(inputs: &[Array], silu: bool) -> Result<Array> {
    let all = concatenate(&[&inputs[1], &inputs[0]], 1)?;
    let tokens = inputs[0].dim(1);
    let tap = |at: i32| all.try_index((.., at..at + tokens))?.multiply(inputs[2].try_index(at)?);
    let y = (1..inputs[2].dim(0)).try_fold(tap(0)?, |sum, at| sum.add(tap(at)?))?;
    let y = inputs.get(3).map_or(Ok(y.clone()), |bias| y.add(bias))?;
    if silu { y.multiply(sigmoid(&y)?) } else { Ok(y) }
}

#[test]
fn it_is_its_formula_in_every_layout_and_gradient() {
    for (width, bias, silu) in
        [(4, false, true), (3, true, false), (2, true, true), (2, false, false)]
    {
        let what = format!("width {width}, bias {bias}, silu {silu}");
        let inputs = inputs(2, 5, width, 19, bias);
        assert_same(&what, &|it| ours(it, silu), &|it| theirs(it, silu), &inputs);
    }
}

/// One token, fewer and more than are done together, and channels that fill vectors and blocks or do not.
#[test]
fn sizes_do_not_matter() {
    for (batch, tokens, channels) in
        [(1, 1, 1), (3, 1, 600), (1, 16, 512), (2, 17, 530), (1, 100, 48)]
    {
        for (width, bias, silu) in [(4, false, true), (3, true, false), (1, true, true)] {
            let what = format!("{batch} rows, {tokens} tokens, {channels} channels, width {width}");
            let inputs = inputs(batch, tokens, width, channels, bias);
            let (ours, theirs) = (ours(&inputs, silu).unwrap(), theirs(&inputs, silu).unwrap());
            assert_close(&ours, &theirs, &what);
        }
    }
}

#[test]
fn nothing_gives_nothing() {
    for (batch, tokens, channels) in [(0, 3, 8), (2, 0, 8), (2, 3, 0)] {
        let y = ours(&inputs(batch, tokens, 4, channels, true), true).unwrap();
        y.eval().unwrap();
        assert_eq!(y.shape(), [batch, tokens, channels]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for (at, shape) in [
        (0, &[2, 5, 18][..]),
        (0, &[5, 19]),
        (1, &[2, 2, 19]),
        (1, &[1, 3, 19]),
        (2, &[19]),
        (3, &[1, 19]),
    ] {
        let mut inputs = inputs(2, 5, 4, 19, true);
        inputs[at] = noise(7, shape);
        let error = ours(&inputs, true).unwrap_err();
        assert!(error.what().contains("do not fit: x is [batch, tokens, channels]"), "{error}");
    }
}
