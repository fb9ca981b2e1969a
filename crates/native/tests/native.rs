//! The operations against what they are made of.

#![cfg(mlxgk_native_ops)]

use mlx_rs::{
    ops::{arange, broadcast_to, concatenate, matmul, rsqrt, select, sigmoid, softmax_axis, tanh},
    random,
    transforms::grad,
};

use mlx_rs::{Array, Dtype, fast::ScaledDotProductAttentionMask as Mask};
use mlxgk_native::Native;

fn native() -> Native {
    Native::new().expect("setup links the operations")
}

fn noise(seed: u64, shape: &[i32]) -> Array {
    random::normal::<f32>(shape, None, None, &random::key(seed).unwrap()).unwrap()
}

fn assert_close(ours: &Array, theirs: &Array, what: &str) {
    assert_eq!(ours.shape(), theirs.shape(), "{what}");
    let worst = ours.subtract(theirs).unwrap().abs().unwrap().max(None).unwrap();
    let worst = worst.try_item_exact::<f32>().unwrap();
    assert!(worst < 2e-5, "{what}: off by {worst}");
}

#[test]
fn a_product_with_bf16_weights_is_the_product_with_them_widened() {
    for (rows, columns, length) in
        [(1, 5, 3), (2, 40, 70), (16, 96, 64), (17, 33, 40), (40, 9, 5000)]
    {
        let weight = noise(1, &[columns, length]).multiply(Array::from_f32(0.05)).unwrap();
        let weight = weight.as_dtype(Dtype::Bfloat16).unwrap();
        weight.eval().unwrap();
        let wide = weight.as_dtype(Dtype::Float32).unwrap().t();
        // Rows behind one another, and rows that are columns of something else.
        let dense = noise(2, &[1, rows, length]);
        let strided = noise(3, &[length, rows]).t();
        for x in [dense, strided] {
            let ours = native().widening_product(&x, &weight).unwrap();
            let what = format!("{rows} x {columns} x {length}");
            assert_close(&ours, &matmul(&x, &wide).unwrap(), &what);
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_last_bit_whoever_stands_beside_it() {
    let weight = noise(1, &[50, 70]).as_dtype(Dtype::Bfloat16).unwrap();
    weight.eval().unwrap();
    let x = noise(2, &[16, 70]);
    let first = |count: i32| {
        let rows = arange::<i32, i32>(0, count, 1).unwrap();
        let rows = x.take_axis(&rows, 0).unwrap();
        native().widening_product(&rows, &weight).unwrap().try_as_slice::<f32>().unwrap()[..50]
            .to_vec()
    };
    let alone = first(1);
    for count in 2..=16 {
        assert_eq!(first(count), alone, "beside {} others", count - 1);
    }
}

#[test]
fn norm_gate_and_rotation_are_what_they_are_made_of() {
    let (x, up, weight) = (noise(1, &[2, 7, 70]), noise(2, &[2, 7, 70]), noise(3, &[70]));
    let mean = x.square().unwrap().mean_axis(-1, true).unwrap();
    let norm = rsqrt(mean.add(Array::from_f32(1e-3)).unwrap()).unwrap();
    let norm = x.multiply(norm).unwrap().multiply(&weight).unwrap();
    assert_close(&native().rms_norm(&x, &weight, 1e-3).unwrap(), &norm, "norm");

    let wide = x.multiply(Array::from_f32(40.0)).unwrap();
    let gate = wide.multiply(sigmoid(&wide).unwrap()).unwrap().multiply(&up).unwrap();
    assert_close(&native().silu_gate(&wide, &up).unwrap(), &gate, "gate");

    for (dim, half) in [(40, 20), (48, 17)] {
        // As attention has them: heads behind tokens in memory.
        let x = noise(4, &[2, 5, 3, dim]).swap_axes(1, 2).unwrap();
        let (cos, sin) = (noise(5, &[2, 1, 5, 1, half]), noise(6, &[2, 1, 5, 2, half]));
        let parts = x.split_at_indices(&[half, 2 * half], -1).unwrap();
        let (a, b, rest) = (&parts[0], &parts[1], &parts[2]);
        let cosines = cos.squeeze_axes(&[3]).unwrap();
        let sines = sin.split_equal(2, 3).unwrap();
        let sine = |at: usize| sines[at].squeeze_axes(&[3]).unwrap();
        let turn = |x: &Array, y: &Array, sine: &Array| {
            x.multiply(&cosines).unwrap().add(y.multiply(sine).unwrap()).unwrap()
        };
        let turned = [turn(a, b, &sine(0)), turn(b, a, &sine(1)), rest.clone()];
        let turned = concatenate(&turned.iter().collect::<Vec<_>>(), -1).unwrap();
        assert_close(&native().rotate(&x, &cos, &sin).unwrap(), &turned, "rotation");
    }
}

/// Attention as the formula has it, on keys and values repeated for every query head.
fn attention(
    [queries, keys, values]: [&Array; 3],
    seen: &Array,
    scale: f32,
    soft_cap: Option<f32>,
) -> Array {
    let group = queries.dim(1) / keys.dim(1);
    let repeated = |x: &Array| {
        let [batch, heads, columns, dim] = [0, 1, 2, 3].map(|axis| x.dim(axis));
        let x = x.expand_dims(2).unwrap();
        let x = broadcast_to(&x, &[batch, heads, group, columns, dim]).unwrap();
        x.reshape(&[batch, heads * group, columns, dim]).unwrap()
    };
    let keys = repeated(keys).swap_axes(-1, -2).unwrap();
    let mut scores = matmul(queries, &keys).unwrap().multiply(Array::from_f32(scale)).unwrap();
    if let Some(cap) = soft_cap {
        let cap = Array::from_f32(cap);
        scores = tanh(scores.divide(&cap).unwrap()).unwrap().multiply(&cap).unwrap();
    }
    let scores = select(seen, &scores, Array::from_f32(f32::NEG_INFINITY)).unwrap();
    matmul(softmax_axis(&scores, -1, true).unwrap(), repeated(values)).unwrap()
}

#[test]
fn attention_is_what_it_is_made_of() {
    // Few and many queries per key/value head, more than a band of them, and heads of awkward
    // widths.
    for (tokens, columns, group, dim) in [
        (1, 9, 2, 64),
        (1, 300, 1, 24),
        (3, 40, 4, 80),
        (12, 40, 2, 32),
        (21, 21, 2, 36),
        (600, 1024, 2, 16),
    ] {
        let queries = noise(1, &[2, tokens, 3 * group, dim]).swap_axes(1, 2).unwrap();
        // A cache has room behind its last column.
        let room = columns + 100;
        let cached = |seed| {
            let columns = arange::<i32, i32>(0, columns, 1).unwrap();
            noise(seed, &[2, 3, room, dim]).take_axis(&columns, 2).unwrap()
        };
        let (keys, values) = (cached(2), cached(3));
        let last = arange::<i32, i32>(columns - tokens, columns, 1).unwrap();
        let places = arange::<i32, i32>(0, columns, 1).unwrap();
        let causal = places.le(last.expand_dims(1).unwrap()).unwrap();
        let padding = Array::from_slice(&[0_i32, columns / 2], &[2, 1, 1, 1]);
        let padded = places.ge(&padding).unwrap().logical_and(&causal).unwrap();
        let all = Array::from_bool(true);
        for (mask, soft_cap, formula) in [
            (None, None, &all),
            (Some(Mask::Causal), Some(3.0), &causal),
            (Some(Mask::Array(&padded)), None, &padded),
        ] {
            // A row of padding alone sees nothing; nobody reads what comes out of it.
            let blank = tokens > columns - columns / 2;
            if blank && matches!(mask, Some(Mask::Array(_))) {
                continue;
            }
            let ours = native().attention(&queries, &keys, &values, 0.3, mask, soft_cap).unwrap();
            let theirs = attention([&queries, &keys, &values], formula, 0.3, soft_cap);
            let what = format!("{tokens} tokens, {columns} columns, {mask:?}");
            assert_close(&ours, &theirs, &what);
        }
    }
}

#[test]
fn gradients_go_through() {
    let weight = noise(1, &[6, 40]).as_dtype(Dtype::Bfloat16).unwrap();
    weight.eval().unwrap();
    let wide = weight.as_dtype(Dtype::Float32).unwrap().t();
    let x = noise(2, &[3, 40]);
    let ours = |x: &Array| native().widening_product(x, &weight)?.square()?.sum(None);
    let theirs = |x: &Array| matmul(x, &wide)?.square()?.sum(None);
    assert_close(&grad(ours)(&x).unwrap(), &grad(theirs)(&x).unwrap(), "gradient");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, weight) = (noise(1, &[2, 3]), noise(2, &[4]));
    let error = native().rms_norm(&x, &weight, 1e-6).unwrap_err();
    assert!(error.what().contains("one fp32 weight per column"), "{error}");
}
