//! Gates against their formulas in MLX's operations.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_same, assert_same_twice, native, noise};
use mlx_rs::{Array, error::Result, ops::sigmoid};

fn ours(inputs: &[Array]) -> Result<Array> {
    native().silu_gate(&inputs[0], &inputs[1])
}

fn theirs(inputs: &[Array]) -> Result<Array> {
    inputs[0].multiply(sigmoid(&inputs[0])?)?.multiply(&inputs[1])
}

fn our_sigmoid(inputs: &[Array]) -> Result<Array> {
    native().sigmoid_gate(&inputs[0], &inputs[1])
}

fn their_sigmoid(inputs: &[Array]) -> Result<Array> {
    sigmoid(&inputs[0])?.multiply(&inputs[1])
}

#[test]
fn it_is_its_formula() {
    for shape in [&[70][..], &[3, 1], &[2, 7, 33], &[1, 1, 6000], &[2, 2, 3, 5]] {
        // Far into the tails, too.
        let gate = noise(1, shape).multiply(Array::from_f32(20.0)).unwrap();
        let inputs = [gate, noise(2, shape)];
        assert_same(&format!("silu, {shape:?}"), &ours, &theirs, &inputs);
        assert_same(&format!("sigmoid, {shape:?}"), &our_sigmoid, &their_sigmoid, &inputs);
    }
}

#[test]
fn its_gradient_has_a_gradient() {
    let inputs = [noise(1, &[3, 33]), noise(2, &[3, 33])];
    assert_same_twice("silu", &ours, &theirs, &inputs);
    assert_same_twice("sigmoid", &our_sigmoid, &their_sigmoid, &inputs);
}

#[test]
fn nothing_gives_nothing() {
    for shape in [[0, 8], [3, 0]] {
        let gate = ours(&[noise(1, &shape), noise(2, &shape)]).unwrap();
        gate.eval().unwrap();
        assert_eq!(gate.shape(), shape);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = native().silu_gate(&noise(1, &[2, 3]), &noise(2, &[3])).unwrap_err();
    assert!(error.what().contains("`gate` [2, 3], `up` [3] do not fit"), "{error}");
    let number = Array::from_f32(1.0);
    assert!(native().silu_gate(&number, &number).is_err());
}
