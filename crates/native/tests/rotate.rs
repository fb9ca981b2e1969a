//! The rotation against its formula in MLX's operations.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_same, native, noise};
use mlx_rs::{Array, error::Result, ops::concatenate};

fn ours(inputs: &[Array]) -> Result<Array> {
    native().rotate(&inputs[0], &inputs[1], &inputs[2])
}

fn theirs(inputs: &[Array]) -> Result<Array> {
    let half = inputs[1].dim(4);
    let parts = inputs[0].split_at_indices(&[half, 2 * half], -1)?;
    let cos = inputs[1].squeeze_axes(&[3])?;
    let sines = inputs[2].split_equal(2, 3)?;
    let turn = |x: &Array, y: &Array, sine: &Array| {
        x.multiply(&cos)?.add(y.multiply(sine.squeeze_axes(&[3])?)?)
    };
    let (first, second) = (&parts[0], &parts[1]);
    let mut turned = vec![turn(first, second, &sines[0])?, turn(second, first, &sines[1])?];
    if 2 * half < inputs[0].dim(3) {
        turned.push(parts[2].clone());
    }
    concatenate(&turned.iter().collect::<Vec<_>>(), -1)
}

#[test]
fn it_is_its_formula() {
    for (batch, heads, tokens, dim, half) in
        [(2, 3, 5, 40, 20), (2, 3, 5, 48, 17), (1, 2, 1, 4, 1), (3, 1, 4, 33, 16)]
    {
        for tables in [1, batch] {
            let x = noise(1, &[batch, heads, tokens, dim]);
            let cos = noise(2, &[tables, 1, tokens, 1, half]);
            let sin = noise(3, &[tables, 1, tokens, 2, half]);
            let what = format!("{batch} x {heads} x {tokens} x {dim}, half {half}");
            assert_same(&what, &ours, &theirs, &[x, cos, sin]);
        }
    }
}

#[test]
fn nothing_gives_nothing_and_no_angle_leaves_all() {
    for (batch, tokens, half) in [(0, 3, 4), (2, 0, 4), (2, 3, 0)] {
        let x = noise(1, &[batch, 2, tokens, 8]);
        let tables = [noise(2, &[1, 1, tokens, 1, half]), noise(3, &[1, 1, tokens, 2, half])];
        let turned = native().rotate(&x, &tables[0], &tables[1]).unwrap();
        turned.eval().unwrap();
        assert_eq!(turned.shape(), x.shape());
        if half == 0 {
            common::assert_close(&turned, &x, "no angle");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = noise(1, &[2, 3, 5, 8]);
    for (cos, sin) in [
        ([3, 1, 5, 1, 4], [3, 1, 5, 2, 4]),
        ([1, 1, 4, 1, 4], [1, 1, 4, 2, 4]),
        ([1, 1, 5, 1, 5], [1, 1, 5, 2, 5]),
        ([1, 1, 5, 1, 4], [1, 1, 5, 1, 4]),
        ([1, 1, 5, 1, 4], [2, 1, 5, 2, 4]),
        ([1, 1, 5, 1, 4], [1, 1, 5, 2, 3]),
    ] {
        let error = native().rotate(&x, &noise(2, &cos), &noise(3, &sin)).unwrap_err();
        assert!(error.what().contains("do not fit"), "{error}");
    }
}
