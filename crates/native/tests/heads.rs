//! Heads that are cut out, normed and rotated in one operation, against the operations one by one.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_same, native, noise, values};
use mlx_rs::{Array, error::Result, ops::concatenate};

const EPS: f32 = 1e-6;

/// Heads of two arrays, one behind the other. Inputs are the arrays, cosines, sines and, with norms, two weights.
fn ours(inputs: &[Array], dim: i32) -> Result<Array> {
    let norms = inputs.get(5).map(|second| ([&inputs[4], second], EPS));
    let heads =
        native().turned_heads([&inputs[0], &inputs[1]], norms, &inputs[2], &inputs[3], dim)?;
    concatenate(&heads.each_ref(), 1)
}

fn theirs(inputs: &[Array], dim: i32) -> Result<Array> {
    let heads = |at: usize| {
        let x = &inputs[at];
        let mut x = x.reshape(&[x.dim(0), x.dim(1), x.dim(2) / dim, dim])?;
        if let Some(weight) = inputs.get(4 + at) {
            x = native().rms_norm(&x, weight, EPS)?;
        }
        native().rotate(&x.transpose_axes(&[0, 2, 1, 3])?, &inputs[2], &inputs[3])
    };
    concatenate(&[&heads(0)?, &heads(1)?], 1)
}

/// Arrays with 3 heads and with 1, and tables for some rows.
fn inputs(batch: i32, tables: i32, tokens: i32, dim: i32, half: i32) -> Vec<Array> {
    vec![
        noise(1, &[batch, tokens, 3 * dim]),
        noise(2, &[batch, tokens, dim]),
        noise(3, &[tables, 1, tokens, 1, half]),
        noise(4, &[tables, 1, tokens, 2, half]),
    ]
}

#[test]
fn they_are_what_the_operations_one_by_one_give() {
    for (batch, tables, tokens, dim, half) in
        [(2, 1, 5, 40, 20), (2, 2, 3, 40, 17), (1, 1, 1, 4, 1), (3, 3, 1, 33, 16)]
    {
        let what = format!("{batch} x {tokens} x {dim}, half {half}, {tables} tables");
        let plain = inputs(batch, tables, tokens, dim, half);
        let normed = [&plain[..], &[noise(5, &[dim]), noise(6, &[dim])]].concat();
        for inputs in [plain, normed] {
            let [one, all] =
                [ours, theirs].map(|operation| values(&operation(&inputs, dim).unwrap()));
            assert_eq!(one, all, "{what}, to the last bit");
            assert_same(&what, &|it| ours(it, dim), &|it| theirs(it, dim), &inputs);
        }
    }
}

#[test]
fn nothing_gives_nothing() {
    for (batch, tokens) in [(0, 3), (2, 0)] {
        let inputs = inputs(batch, 1, tokens, 8, 4);
        assert_eq!(ours(&inputs, 8).unwrap().shape(), [batch, 4, tokens, 8]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let fitting = inputs(2, 1, 5, 8, 4);
    for (at, shape) in [
        (0, &[2, 5, 20][..]),
        (0, &[2, 3, 5, 8]),
        (1, &[2, 4, 8]),
        (2, &[3, 1, 5, 1, 4]),
        (3, &[1, 1, 5, 1, 4]),
    ] {
        let mut inputs = fitting.clone();
        inputs[at] = noise(9, shape);
        let error = ours(&inputs, 8).unwrap_err();
        assert!(error.what().contains("do not fit"), "{error}");
    }
    let weights = [noise(5, &[8]), noise(6, &[4])];
    assert!(ours(&[&fitting[..], &weights].concat(), 8).is_err());
}
