//! Products with packed weights against MLX's product with the same weights unpacked.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_close, assert_same, native, noise, values};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{dequantize, matmul, quantize},
};
use mlxgk_native::{Packed, Quantization};

const BITS: [i32; 6] = [2, 3, 4, 5, 6, 8];

fn packed(arrays: &[Array], group: i32, bits: i32) -> Result<Packed> {
    let [words, scales, biases] = arrays else { panic!("words, scales and biases") };
    let quantization = Quantization::affine(group, bits).unwrap();
    Packed::new(words.clone(), scales.clone(), Some(biases.clone()), quantization)
}

fn ours(inputs: &[Array], group: i32, bits: i32) -> Result<Array> {
    native().packed_product(&inputs[0], &packed(&inputs[1..], group, bits)?)
}

fn theirs(inputs: &[Array], group: i32, bits: i32) -> Result<Array> {
    let weight = dequantize(&inputs[1], &inputs[2], &inputs[3], group, bits)?;
    matmul(&inputs[0], weight.t())
}

/// Rows, and a matrix packed by MLX.
fn inputs(shape: &[i32], columns: i32, group: i32, bits: i32) -> Vec<Array> {
    let weight = noise(1, &[columns, shape[shape.len() - 1]]);
    let weight = weight.multiply(Array::from_f32(0.05)).unwrap();
    let (words, scales, biases) = quantize(&weight, group, bits).unwrap();
    vec![noise(2, shape), words, scales, biases]
}

#[test]
fn it_is_the_product_with_the_weights_unpacked() {
    for bits in BITS {
        for (shape, columns, group) in [
            (&[64][..], 5, 32),
            (&[1, 1, 128], 33, 64),
            (&[2, 7, 128], 40, 128),
            (&[16, 96], 9, 32),
            (&[3, 11, 64], 50, 64),
        ] {
            let inputs = inputs(shape, columns, group, bits);
            let (ours, theirs) = (ours(&inputs, group, bits), theirs(&inputs, group, bits));
            let what = format!("{bits} bits, {shape:?} and {columns} columns");
            assert_close(&ours.unwrap(), &theirs.unwrap(), &what);
        }
    }
}

#[test]
fn it_is_the_same_in_every_layout_and_in_the_gradients() {
    for (bits, shape) in [(4, &[2, 3, 64][..]), (3, &[20, 64]), (8, &[1, 32])] {
        let inputs = inputs(shape, 6, 32, bits);
        let packed = inputs[1].clone();
        // The words have no gradient.
        let with = |it: &[Array]| vec![it[0].clone(), packed.clone(), it[1].clone(), it[2].clone()];
        assert_same(
            &format!("{bits} bits"),
            &|it| ours(&with(it), 32, bits),
            &|it| theirs(&with(it), 32, bits),
            &[inputs[0].clone(), inputs[2].clone(), inputs[3].clone()],
        );
        // Words as columns of something else.
        let turned = packed.t().reshape(&[-1]).unwrap();
        let turned = turned.reshape(&[packed.dim(1), packed.dim(0)]).unwrap().t();
        let moved = vec![inputs[0].clone(), turned, inputs[2].clone(), inputs[3].clone()];
        let (moved, plain) = (ours(&moved, 32, bits).unwrap(), ours(&inputs, 32, bits).unwrap());
        assert_eq!(values(&moved), values(&plain));
    }
}

#[test]
fn it_is_the_same_for_many_columns_and_several_panels() {
    for (rows, columns, length) in [(1, 3000, 256), (5, 1000, 512), (40, 300, 4096)] {
        let inputs = inputs(&[rows, length], columns, 64, 4);
        let what = format!("{rows} x {columns} x {length}");
        assert_close(&ours(&inputs, 64, 4).unwrap(), &theirs(&inputs, 64, 4).unwrap(), &what);
    }
}

#[test]
fn a_row_is_the_same_to_the_last_bit_whatever_is_beside_it() {
    let all = inputs(&[16, 128], 50, 64, 4);
    let first = |count: i32| {
        let mut inputs = all.clone();
        inputs[0] = all[0].split_at_indices(&[count], 0).unwrap().swap_remove(0);
        values(&ours(&inputs, 64, 4).unwrap())[..50].to_vec()
    };
    let alone = first(1);
    for count in 2..=16 {
        assert_eq!(first(count), alone, "beside {} others", count - 1);
    }
}

#[test]
fn nothing_gives_nothing() {
    let mut inputs = inputs(&[2, 64], 5, 32, 4);
    inputs[0] = noise(1, &[0, 64]);
    let product = ours(&inputs, 32, 4).unwrap();
    product.eval().unwrap();
    assert_eq!(product.shape(), [0, 5]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = inputs(&[2, 64], 5, 32, 4);
    assert!(ours(&good, 32, 4).is_ok());
    for (group, bits) in [(32, 7), (48, 4), (0, 4), (32, 0)] {
        assert_eq!(Quantization::affine(group, bits), None);
    }
    for (group, bits) in [(64, 4), (32, 8)] {
        let error = ours(&good, group, bits).unwrap_err();
        assert!(error.what().contains("do not fit: words are"), "{error}");
    }
    for (at, shape) in [(0, &[2, 32][..]), (2, &[5, 3]), (3, &[4, 2]), (2, &[10])] {
        let mut inputs = good.clone();
        inputs[at] = noise(1, shape);
        let error = ours(&inputs, 32, 4).unwrap_err();
        assert!(error.what().contains("do not fit"), "{error}");
    }
    let mut inputs = good.clone();
    inputs[1] = inputs[1].as_dtype(Dtype::Int32).unwrap();
    assert!(ours(&inputs, 32, 4).is_err());
    let [words, scales] = [&good[1], &good[2]].map(Clone::clone);
    let error = Packed::new(words.clone(), scales.clone(), None, Quantization::MXFP4).unwrap_err();
    assert!(error.what().contains("`scales` is Float32, expected Uint8"), "{error}");
    let affine = Quantization::affine(32, 4).unwrap();
    assert!(Packed::new(words, scales, None, affine).is_err(), "the affine mode has biases");
}
