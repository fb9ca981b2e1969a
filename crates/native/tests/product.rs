//! Products with bf16 weights against MLX's with the same weights in fp32.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_close, assert_same, bf16_noise, native, noise, values};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{concatenate, matmul},
};

fn ours(inputs: &[Array]) -> Result<Array> {
    native().widening_product(&inputs[0], &inputs[1])
}

fn theirs(inputs: &[Array]) -> Result<Array> {
    matmul(&inputs[0], inputs[1].as_dtype(Dtype::Float32)?.t())
}

#[test]
fn it_is_the_product_with_the_weights_widened() {
    // One row, some that meet the weights as they lie, and more, which meet columns of floats.
    for (shape, columns) in
        [(&[3][..], 5), (&[2, 70], 40), (&[2, 8, 64], 96), (&[17, 40], 33), (&[2, 20, 9], 50)]
    {
        let weight = bf16_noise(1, &[columns, shape[shape.len() - 1]]);
        let what = format!("{shape:?} and {columns} columns");
        assert_same(&what, &ours, &theirs, &[noise(2, shape), weight]);
    }
}

#[test]
fn it_is_the_same_for_long_rows_and_several_blocks() {
    let shapes = [(1, 9, 70_000), (16, 3000, 33), (40, 300, 5000), (40, 70, 608), (1030, 40, 288)];
    for (rows, columns, length) in shapes {
        let inputs = [noise(1, &[rows, length]), bf16_noise(2, &[columns, length])];
        let what = format!("{rows} x {columns} x {length}");
        // Sums of thousands of numbers differ in their last bits with their order.
        let (ours, theirs) = (ours(&inputs).unwrap(), theirs(&inputs).unwrap());
        let scale = Array::from_f32(0.1);
        assert_close(&ours.multiply(&scale).unwrap(), &theirs.multiply(&scale).unwrap(), &what);
    }
}

#[test]
fn weights_that_are_not_computed_yet_are_waited_for() {
    let weight = bf16_noise(1, &[6, 8]).add(bf16_noise(2, &[6, 8])).unwrap();
    let inputs = [noise(3, &[2, 8]), weight];
    assert_close(&ours(&inputs).unwrap(), &theirs(&inputs).unwrap(), "lazy weights");
}

#[test]
fn a_row_is_the_same_to_the_last_bit_whatever_is_beside_it() {
    let weight = bf16_noise(1, &[50, 70]);
    let x = noise(2, &[16, 70]);
    let first = |count: i32| {
        let rows = x.split_at_indices(&[count], 0).unwrap().swap_remove(0);
        values(&ours(&[rows, weight.clone()]).unwrap())[..50].to_vec()
    };
    let alone = first(1);
    for count in 2..=16 {
        assert_eq!(first(count), alone, "beside {} others", count - 1);
    }
}

/// The products with three matrices side by side.
fn side_by_side(inputs: &[Array]) -> Result<Array> {
    let [x, weights @ ..] = inputs else { panic!("x and matrices") };
    let products = native().widening_products(x, [&weights[0], &weights[1], &weights[2]])?;
    concatenate(&products.each_ref(), -1)
}

#[test]
fn products_with_several_matrices_are_those_with_each() {
    for shape in [&[1, 70][..], &[2, 3, 40], &[18, 40]] {
        let length = shape[shape.len() - 1];
        let weights = [5, 33, 24].map(|columns| bf16_noise(columns as u64, &[columns, length]));
        let inputs = [&[noise(2, shape)][..], &weights].concat();
        let theirs = |inputs: &[Array]| -> Result<Array> {
            let products: Result<Vec<Array>> = inputs[1..]
                .iter()
                .map(|weight| theirs(&[inputs[0].clone(), weight.clone()]))
                .collect();
            concatenate(&products?.iter().collect::<Vec<_>>(), -1)
        };
        assert_same(&format!("{shape:?}"), &side_by_side, &theirs, &inputs);
    }
}

#[test]
fn each_of_several_products_is_what_it_is_alone_to_the_last_bit() {
    // Chunks of rows end within matrices and at their ends.
    let weights = [700, 1, 350].map(|columns| bf16_noise(columns as u64, &[columns, 300]));
    for rows in [1, 2, 7, 16, 17] {
        let x = noise(2, &[rows, 300]);
        let [one, two, three] = weights.each_ref();
        let together = native().widening_products(&x, [one, two, three]).unwrap();
        for (product, weight) in together.iter().zip(&weights) {
            let alone = native().widening_product(&x, weight).unwrap();
            assert_eq!(values(product), values(&alone), "{rows} rows, {:?}", weight.shape());
        }
        let gated = native().gated_widening_product(&x, one, one).unwrap();
        let alone = &together[0];
        let alone = native().silu_gate(alone, alone).unwrap();
        assert_eq!(values(&gated), values(&alone), "{rows} rows, gated");
    }
}

#[test]
fn a_gated_product_is_its_formula() {
    let ours = |it: &[Array]| native().gated_widening_product(&it[0], &it[1], &it[2]);
    let theirs = |it: &[Array]| {
        let product = |at: usize| theirs(&[it[0].clone(), it[at].clone()]);
        native().silu_gate(&product(1)?, &product(2)?)
    };
    for (rows, columns) in [(1, 33), (3, 5), (20, 24)] {
        let weights = [1, 2].map(|seed| bf16_noise(seed, &[columns, 40]));
        let inputs = [&[noise(3, &[rows, 40])][..], &weights].concat();
        assert_same(&format!("{rows} x {columns}"), &ours, &theirs, &inputs);
    }
}

#[test]
fn sums_over_nothing_are_zero_and_nothing_gives_nothing() {
    for rows in [1, 3, 20] {
        let product = ours(&[noise(1, &[rows, 0]), bf16_noise(2, &[5, 0])]).unwrap();
        assert_eq!(product.shape(), [rows, 5]);
        assert_eq!(values(&product), vec![0.0; 5 * rows as usize]);
    }
    for rows in [1, 20] {
        let (x, weight) = (noise(1, &[rows, 0]), bf16_noise(2, &[5, 0]));
        let gated = native().gated_widening_product(&x, &weight, &weight).unwrap();
        assert_eq!(values(&gated), vec![0.0; 5 * rows as usize]);
        let (x, none, some) =
            (noise(1, &[rows, 4]), bf16_noise(2, &[0, 4]), bf16_noise(3, &[5, 4]));
        let [nothing, product] = native().widening_products(&x, [&none, &some]).unwrap();
        assert_eq!(values(&product), values(&native().widening_product(&x, &some).unwrap()));
        assert_eq!(nothing.shape(), [rows, 0]);
    }
    for (rows, columns) in [(0, 5), (3, 0), (20, 0)] {
        let product = ours(&[noise(1, &[rows, 4]), bf16_noise(2, &[columns, 4])]).unwrap();
        product.eval().unwrap();
        assert_eq!(product.shape(), [rows, columns]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = noise(1, &[2, 3]);
    let error = native().widening_product(&x, &bf16_noise(2, &[4, 5])).unwrap_err();
    assert!(error.what().contains("`x` [2, 3], `weight` [4, 5] do not fit"), "{error}");
    let error = native().widening_product(&x, &noise(2, &[4, 3])).unwrap_err();
    assert!(error.what().contains("`weight` is Float32, expected Bfloat16"), "{error}");
    assert!(native().widening_product(&x, &bf16_noise(2, &[3])).is_err());
    let (four, five) = (bf16_noise(2, &[4, 3]), bf16_noise(2, &[5, 3]));
    let error = native().gated_widening_product(&x, &four, &five).unwrap_err();
    assert!(error.what().contains("`gate` [4, 3] and `up` [5, 3] are not of one shape"), "{error}");
    assert!(native().widening_products(&x, [&four, &bf16_noise(2, &[4, 5])]).is_err());
    assert!(native().widening_products(&x, []).unwrap_err().what().contains("there is no matrix"));
}
