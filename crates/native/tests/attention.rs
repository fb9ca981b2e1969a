//! Attention against its formula in MLX's operations.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use std::{
    env,
    io::{self, Write},
    process::Command,
};

use common::{assert_close, assert_same, native, noise, values};
use mlx_rs::{
    Array,
    error::Result,
    fast::ScaledDotProductAttentionMask as Mask,
    ops::{arange, broadcast_to, matmul, select, softmax_axis, tanh},
    transforms::{fallible_vjp, grad},
};

const SCALE: f32 = 0.3;

/// How the queries see: by a mask of booleans among the inputs, causally, or everything.
#[derive(Debug, Clone, Copy)]
enum Seen {
    All,
    Causal,
    Input,
}

fn ours(inputs: &[Array], seen: Seen, soft_cap: Option<f32>) -> Result<Array> {
    let mask = match seen {
        Seen::All => None,
        Seen::Causal => Some(Mask::Causal),
        Seen::Input => Some(Mask::Array(&inputs[3])),
    };
    native().attention(&inputs[0], &inputs[1], &inputs[2], SCALE, mask, soft_cap)
}

/// The formula, on keys and values repeated for every query head.
fn theirs(inputs: &[Array], seen: Seen, soft_cap: Option<f32>) -> Result<Array> {
    let (queries, keys, values) = (&inputs[0], &inputs[1], &inputs[2]);
    let (tokens, columns) = (queries.dim(2), keys.dim(2));
    let group = queries.dim(1) / keys.dim(1);
    let repeated = |x: &Array| {
        let [batch, heads, columns, dim] = [0, 1, 2, 3].map(|axis| x.dim(axis));
        let x = broadcast_to(x.expand_dims(2)?, &[batch, heads, group, columns, dim])?;
        x.reshape(&[batch, heads * group, columns, dim])
    };
    let keys = repeated(keys)?.swap_axes(-1, -2)?;
    let mut scores = matmul(queries, &keys)?.multiply(Array::from_f32(SCALE))?;
    if let Some(cap) = soft_cap {
        let cap = Array::from_f32(cap);
        scores = tanh(scores.divide(&cap)?)?.multiply(&cap)?;
    }
    let nothing = Array::from_f32(f32::NEG_INFINITY);
    let scores = match seen {
        Seen::All => scores,
        Seen::Input => select(&inputs[3], &scores, &nothing)?,
        Seen::Causal => {
            let last = arange::<i32, i32>(columns - tokens, columns, 1)?.expand_dims(1)?;
            let seen = arange::<i32, i32>(0, columns, 1)?.le(last)?;
            select(&seen, &scores, &nothing)?
        }
    };
    matmul(softmax_axis(&scores, -1, true)?, repeated(values)?)
}

/// Queries, keys and values.
fn inputs(batch: i32, heads: i32, groups: i32, tokens: i32, columns: i32, dim: i32) -> Vec<Array> {
    vec![
        noise(1, &[batch, heads, tokens, dim]),
        noise(2, &[batch, groups, columns, dim]),
        noise(3, &[batch, groups, columns, dim]),
    ]
}

/// A mask in which every row sees its first column, and others at random.
fn mask(shape: &[i32]) -> Array {
    let first = arange::<i32, i32>(0, shape[shape.len() - 1], 1).unwrap();
    let first = first.eq(Array::from_int(0)).unwrap();
    noise(4, shape).gt(Array::from_f32(0.0)).unwrap().logical_or(first).unwrap()
}

#[test]
fn it_is_its_formula_in_every_layout() {
    // Few and many rows per key/value head.
    for (tokens, columns, heads, groups, dim) in
        [(1, 9, 4, 2, 16), (3, 5, 2, 2, 7), (1, 600, 2, 1, 8), (9, 12, 4, 2, 20), (17, 17, 1, 1, 5)]
    {
        let what =
            format!("{tokens} tokens, {columns} columns, {heads} by {groups} heads of {dim}");
        let mut inputs = inputs(2, heads, groups, tokens, columns, dim);
        for (seen, cap) in [(Seen::All, None), (Seen::Causal, Some(3.0))] {
            let what = format!("{what}, {seen:?}");
            assert_same(&what, &|it| ours(it, seen, cap), &|it| theirs(it, seen, cap), &inputs);
        }
        inputs.push(mask(&[2, heads, tokens, columns]));
        let (ours, theirs) = (
            |it: &[Array]| ours(it, Seen::Input, None),
            |it: &[Array]| theirs(it, Seen::Input, None),
        );
        assert_same(&format!("{what}, masked"), &ours, &theirs, &inputs);
    }
}

#[test]
fn it_is_its_formula_at_size() {
    for (tokens, columns, heads, groups, dim) in [
        (1, 1300, 8, 1, 64),
        (4, 2048, 4, 2, 80),
        (12, 40, 6, 3, 32),
        (21, 21, 6, 3, 36),
        (600, 1024, 2, 1, 16),
    ] {
        let inputs = inputs(2, heads, groups, tokens, columns, dim);
        for (seen, cap) in [(Seen::All, None), (Seen::Causal, None), (Seen::All, Some(3.0))] {
            let what = format!("{tokens} tokens, {columns} columns, {seen:?}, {cap:?}");
            let (ours, theirs) = (ours(&inputs, seen, cap), theirs(&inputs, seen, cap));
            assert_close(&ours.unwrap(), &theirs.unwrap(), &what);
        }
    }
}

/// Several blocks of queries, with more columns than tokens and as many.
#[test]
fn the_gradient_is_its_formula_at_size() {
    for (tokens, columns, heads, groups, dim) in
        [(130, 130, 4, 2, 16), (150, 201, 2, 1, 20), (65, 300, 3, 3, 7)]
    {
        let mut inputs = inputs(2, heads, groups, tokens, columns, dim);
        inputs.push(mask(&[2, heads, tokens, columns]));
        for (seen, cap) in [
            (Seen::All, None),
            (Seen::Causal, None),
            (Seen::Causal, Some(3.0)),
            (Seen::Input, Some(2.0)),
        ] {
            let gradients = |operation: &dyn Fn(&[Array]) -> Result<Array>| {
                let found = |it: &[Array]| Ok(vec![operation(&[it, &inputs[3..]].concat())?]);
                let by = noise(5, inputs[0].shape());
                fallible_vjp(found, &inputs[..3], &[by]).unwrap().1
            };
            let ours = gradients(&|it| ours(it, seen, cap));
            let theirs = gradients(&|it| theirs(it, seen, cap));
            for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                let what = format!("gradient {at}, {tokens} tokens, {columns}, {seen:?}, {cap:?}");
                assert_close(ours, theirs, &what);
            }
        }
    }
}

#[test]
fn a_query_that_sees_nothing_has_no_gradient() {
    let inputs = inputs(1, 2, 1, 20, 30, 8);
    let rows = arange::<i32, i32>(0, 20, 1).unwrap();
    let seen = rows.gt(Array::from_int(0)).unwrap().reshape(&[20, 1]).unwrap();
    let loss = |it: &Array| {
        let all = [it.clone(), inputs[1].clone(), inputs[2].clone(), seen.clone()];
        ours(&all, Seen::Input, None)?.square()?.sum(None)
    };
    let gradient = values(&grad(loss)(&inputs[0]).unwrap());
    assert_eq!(gradient[..8], [0.0; 8]);
    assert!(gradient[8..16].iter().all(|&it| it != 0.0 && it.is_finite()));
}

#[test]
fn a_mask_may_have_any_shape_that_broadcasts() {
    for (tokens, columns) in [(2, 5), (2, 700), (20, 30)] {
        let mut inputs = inputs(2, 4, 2, tokens, columns, 8);
        for shape in [
            &[columns][..],
            &[1],
            &[tokens, columns],
            &[tokens, 1],
            &[4, 1, columns],
            &[1, 1, 1, columns],
            &[2, 1, 1, columns],
            &[1, 4, tokens, 1],
            &[2, 1, tokens, columns],
            &[2, 4, tokens, columns],
        ] {
            inputs.truncate(3);
            inputs.push(mask(shape));
            let (ours, theirs) =
                (ours(&inputs, Seen::Input, None), theirs(&inputs, Seen::Input, None));
            assert_close(&ours.unwrap(), &theirs.unwrap(), &format!("a mask {shape:?}"));
        }
    }
}

#[test]
fn a_part_of_the_columns_may_be_hidden() {
    // The first 600 columns, more than one part of them, and the last 600.
    let inputs = inputs(1, 2, 1, 2, 1300, 16);
    let columns = arange::<i32, i32>(0, 1300, 1).unwrap();
    for seen in [columns.ge(Array::from_int(600)), columns.lt(Array::from_int(700))] {
        let inputs = [&inputs[..], &[seen.unwrap()]].concat();
        let (ours, theirs) = (ours(&inputs, Seen::Input, None), theirs(&inputs, Seen::Input, None));
        assert_close(&ours.unwrap(), &theirs.unwrap(), "hidden parts");
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    for tokens in [2, 20] {
        let mut inputs = inputs(1, 2, 1, tokens, 700, 8);
        let rows = arange::<i32, i32>(0, tokens, 1).unwrap();
        inputs.push(rows.gt(Array::from_int(0)).unwrap().reshape(&[tokens, 1]).unwrap());
        let mixed = values(&ours(&inputs, Seen::Input, None).unwrap());
        assert_eq!(mixed[..8], [0.0; 8]);
        assert!(mixed[8..16].iter().all(|&it| it != 0.0));
    }
}

#[test]
fn nan_is_not_hidden() {
    for (tokens, columns) in [(1, 9), (1, 700), (20, 20)] {
        for at in 0..3 {
            let mut inputs = inputs(1, 2, 1, tokens, columns, 8);
            inputs[at] = inputs[at].multiply(Array::from_f32(f32::NAN)).unwrap();
            let mixed = values(&ours(&inputs, Seen::All, None).unwrap());
            assert!(mixed.iter().all(|it| it.is_nan()), "{tokens} tokens, input {at}");
        }
    }
}

#[test]
fn nothing_gives_nothing_and_no_column_gives_zeros() {
    for (batch, heads, tokens, columns, dim) in
        [(0, 2, 3, 4, 8), (1, 0, 3, 4, 8), (1, 2, 0, 4, 8), (1, 2, 3, 4, 0)]
    {
        let inputs = inputs(batch, heads, 1, tokens, columns, dim);
        let mixed = ours(&inputs, Seen::All, None).unwrap();
        mixed.eval().unwrap();
        assert_eq!(mixed.shape(), inputs[0].shape());
    }
    for tokens in [1, 20] {
        let mixed = ours(&inputs(1, 2, 1, tokens, 0, 8), Seen::All, None).unwrap();
        assert_eq!(values(&mixed), vec![0.0; 16 * tokens as usize]);
        let inputs = inputs(1, 2, 1, tokens, 0, 8);
        let loss = |it: &Array| {
            ours(&[it.clone(), inputs[1].clone(), inputs[2].clone()], Seen::All, None)?.sum(None)
        };
        let gradient = grad(loss)(&inputs[0]).unwrap();
        assert_eq!(values(&gradient), vec![0.0; 16 * tokens as usize]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let inputs = inputs(2, 4, 2, 3, 5, 8);
    let refused = |at: usize, shape: &[i32]| {
        let mut inputs = inputs.clone();
        inputs[at] = noise(1, shape);
        ours(&inputs, Seen::All, None).unwrap_err()
    };
    for (at, shape) in [
        (0, &[2, 4, 3][..]),
        (0, &[2, 3, 3, 8]),
        (0, &[3, 4, 3, 8]),
        (0, &[2, 4, 3, 7]),
        (1, &[2, 2, 4, 8]),
        (1, &[2, 0, 5, 8]),
        (2, &[2, 2, 5, 7]),
    ] {
        let error = refused(at, shape);
        assert!(error.what().contains("do not fit: queries are [batch"), "{error}");
    }
    for shape in [&[4][..], &[2, 5], &[3, 1, 5], &[3, 1, 3, 5], &[1, 1, 1, 3, 5]] {
        let inputs = [&inputs[..], &[mask(shape)]].concat();
        let error = ours(&inputs, Seen::Input, None).unwrap_err();
        assert!(error.what().contains("a mask broadcasts to"), "{error}");
    }
    let floats = [&inputs[..], &[noise(1, &[3, 5])]].concat();
    let error = ours(&floats, Seen::Input, None).unwrap_err();
    assert!(error.what().contains("`mask` is Float32, expected Bool"), "{error}");
    for cap in [0.0, -1.0, f32::NAN] {
        let error = ours(&inputs, Seen::All, Some(cap)).unwrap_err();
        assert!(error.what().contains("must be positive"), "{error}");
    }
}

#[test]
fn causal_attention_needs_a_column_for_every_token() {
    let inputs = inputs(1, 2, 1, 5, 4, 8);
    let error = ours(&inputs, Seen::Causal, None).unwrap_err();
    assert!(error.what().contains("needs a column per token"), "{error}");
}

/// The bits of what decoding computes, on as many threads as the environment says.
fn bits() -> String {
    let results = [(1, 3000), (3, 1500)].map(|(tokens, columns)| {
        let inputs = inputs(2, 4, 1, tokens, columns, 64);
        values(&ours(&inputs, Seen::Causal, None).unwrap())
    });
    results.iter().flatten().map(|it| format!("{:x} ", it.to_bits())).collect()
}

#[test]
fn a_decoded_token_does_not_depend_on_the_number_of_threads() {
    const CHILD: &str = "MLXGK_TEST_CHILD";
    if env::var_os(CHILD).is_some() {
        writeln!(io::stdout(), "bits: {}", bits()).unwrap();
        return;
    }
    let on = |threads: &str| {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_decoded_token_does_not_depend_on_the_number_of_threads"])
            .arg("--nocapture")
            .envs([(CHILD, "1"), ("OPENBLAS_NUM_THREADS", threads)])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_once("bits: ").unwrap().1.lines().next().unwrap().to_owned()
    };
    let alone = on("1");
    assert!(alone.len() > 1000);
    for threads in ["2", "3", "8"] {
        assert_eq!(on(threads), alone, "{threads} threads");
    }
}
