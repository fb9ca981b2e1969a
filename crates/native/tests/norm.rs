//! RMS norm against its formula in MLX's operations.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_same, assert_same_twice, native, noise};
use mlx_rs::{Array, error::Result, ops::rsqrt};

const EPS: f32 = 1e-3;

fn ours(inputs: &[Array]) -> Result<Array> {
    native().rms_norm(&inputs[0], &inputs[1], EPS)
}

fn theirs(inputs: &[Array]) -> Result<Array> {
    let mean = inputs[0].square()?.mean_axis(-1, true)?;
    inputs[0].multiply(rsqrt(mean.add(Array::from_f32(EPS))?)?)?.multiply(&inputs[1])
}

#[test]
fn it_is_its_formula() {
    for shape in [&[70][..], &[1, 64], &[2, 3, 8], &[4, 7, 33], &[2, 20, 1], &[2, 3, 2, 5]] {
        let size = shape[shape.len() - 1];
        assert_same(&format!("{shape:?}"), &ours, &theirs, &[noise(1, shape), noise(2, &[size])]);
    }
}

#[test]
fn its_gradient_has_a_gradient() {
    assert_same_twice("twice", &ours, &theirs, &[noise(1, &[3, 33]), noise(2, &[33])]);
}

#[test]
fn no_rows_are_none() {
    for shape in [&[0, 8][..], &[3, 0, 8], &[3, 0]] {
        let size = shape[shape.len() - 1];
        let norm = ours(&[noise(1, shape), noise(2, &[size])]).unwrap();
        norm.eval().unwrap();
        assert_eq!(norm.shape(), shape);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, weight) = (noise(1, &[2, 3]), noise(2, &[4]));
    let error = native().rms_norm(&x, &weight, EPS).unwrap_err();
    assert!(error.what().contains("`x` [2, 3], `weight` [4] do not fit"), "{error}");
    let half = x.as_dtype(mlx_rs::Dtype::Float16).unwrap();
    let error = native().rms_norm(&half, &weight, EPS).unwrap_err();
    assert!(error.what().contains("`x` is Float16, expected Float32"), "{error}");
    assert!(native().rms_norm(&Array::from_f32(1.0), &weight, EPS).is_err());
    assert!(native().rms_norm(&x, &noise(1, &[1, 3]), EPS).is_err());
}
