//! Log-probabilities of single tokens against their formula in MLX's operations.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_close, assert_same, native, noise, values};
use mlx_rs::{Array, error::Result, ops::logsumexp_axis, transforms::grad};

/// An id for each row, spread over the vocabulary.
fn ids(rows: i32, vocab: i32) -> Array {
    let ids: Vec<u32> = (0..rows).map(|row| (row * 7919 % vocab) as u32).collect();
    Array::from_slice(&ids, &[rows])
}

fn formula(logits: &Array, ids: &Array) -> Result<Array> {
    let chosen = logits.take_along_axis(ids.expand_dims(-1)?, -1)?;
    chosen.subtract(logsumexp_axis(logits, -1, true)?)?.squeeze_axes(&[-1])
}

#[test]
fn it_is_its_formula() {
    for (rows, vocab) in [(1, 1), (3, 16), (5, 33), (2, 5000), (40, 7)] {
        let logits = noise(1, &[rows, vocab]).multiply(Array::from_f32(4.0)).unwrap();
        let ids = ids(rows, vocab);
        let ours = |it: &[Array]| native().token_logprobs(&it[0], &ids);
        let theirs = |it: &[Array]| formula(&it[0], &ids);
        assert_same(&format!("[{rows}, {vocab}]"), &ours, &theirs, &[logits]);
    }
}

#[test]
fn ids_may_lie_anywhere() {
    let logits = noise(1, &[6, 9]);
    let all = ids(12, 9);
    for ids in [
        all.split_equal(2, 0).unwrap().swap_remove(1),
        all.reshape(&[6, 2]).unwrap().t().take_axis(Array::from_int(1), 0).unwrap(),
    ] {
        let ours = native().token_logprobs(&logits, &ids).unwrap();
        assert_close(&ours, &formula(&logits, &ids).unwrap(), "other ids");
    }
}

#[test]
fn large_and_hidden_logits_do_no_harm() {
    let mut logits = vec![f32::NEG_INFINITY; 40];
    (logits[3], logits[39]) = (3.0e38, 3.0e38);
    let logits = Array::from_slice(&logits, &[1, 40]);
    let id = Array::from_slice(&[39_u32], &[1]);
    let found = values(&native().token_logprobs(&logits, &id).unwrap())[0];
    assert!((found + 2.0_f32.ln()).abs() < 1e-6, "{found}");
    let of = |it: &Array| native().token_logprobs(it, &id)?.sum(None);
    let gradient = values(&grad(of)(&logits).unwrap());
    assert!((gradient[39] - 0.5).abs() < 1e-6 && (gradient[3] + 0.5).abs() < 1e-6);
    assert_eq!(gradient.iter().filter(|it| **it == 0.0).count(), 38);
}

#[test]
fn no_such_id_is_not_a_number_and_no_rows_are_none() {
    let found = native().token_logprobs(&noise(1, &[2, 3]), &Array::from_slice(&[2_u32, 3], &[2]));
    let found = values(&found.unwrap());
    assert!(found[0].is_finite() && found[1].is_nan(), "{found:?}");
    let none = native().token_logprobs(&noise(1, &[0, 3]), &ids(0, 1)).unwrap();
    none.eval().unwrap();
    assert_eq!(none.shape(), [0]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = native().token_logprobs(&noise(1, &[2, 3]), &ids(3, 3)).unwrap_err();
    assert!(error.what().contains("`logits` [2, 3], `ids` [3] do not fit"), "{error}");
    let error = native().token_logprobs(&noise(1, &[2, 0]), &ids(2, 1)).unwrap_err();
    assert!(error.what().contains("`logits` [2, 0], `ids` [2] do not fit"), "{error}");
    let signed = Array::from_slice(&[1_i32, 2], &[2]);
    let error = native().token_logprobs(&noise(1, &[2, 3]), &signed).unwrap_err();
    assert!(error.what().contains("`ids` is Int32, expected Uint32"), "{error}");
}
