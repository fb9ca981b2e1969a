//! Products with the matrices that a router has chosen, and with packed weights of every mode, against
//! MLX's products with the same weights unpacked.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_close, assert_same, bf16_noise, native, noise, values};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{dequantize, gather_mm, matmul, quantize},
    random,
    transforms::grad,
};
use mlxgk_native::{Mode, Packed, Quantization};

fn whole(seed: u64, range: [u32; 2], shape: &[i32]) -> Array {
    let [low, high] = range.map(|it| it as i32);
    let key = random::key(seed).unwrap();
    random::randint::<_, i32>(low, high, shape, &key).unwrap().as_dtype(Dtype::Uint32).unwrap()
}

/// Every quantization that has kernels.
fn quantizations() -> Vec<Quantization> {
    let affine =
        [(2, 32), (3, 64), (4, 32), (4, 64), (4, 128), (5, 32), (6, 64), (8, 64), (8, 128)];
    let affine = affine.map(|(bits, group)| Quantization::affine(group, bits).unwrap());
    [&affine[..], &[Quantization::MXFP4, Quantization::MXFP8, Quantization::NVFP4]].concat()
}

/// Packed matrices of `[.., out, in]`, with every code among their numbers.
fn packed(seed: u64, shape: &[i32], quantization: Quantization, scales: Dtype) -> Packed {
    let (leading, columns) = (&shape[..shape.len() - 1], shape[shape.len() - 1]);
    if quantization.mode == Mode::Affine {
        let weight = noise(seed, shape).multiply(Array::from_f32(0.05)).unwrap();
        let (words, by, offsets) =
            quantize(&weight, quantization.group_size, quantization.bits).unwrap();
        let [by, offsets] = [by, offsets].map(|it| it.as_dtype(scales).unwrap());
        return Packed::new(words, by, Some(offsets), quantization).unwrap();
    }
    let sized = |last: i32| [leading, &[last]].concat();
    let halves = [seed, seed + 1]
        .map(|seed| whole(seed, [0, 1 << 16], &sized(columns * quantization.bits / 32)));
    let words = halves[0].multiply(Array::from_slice(&[1_u32 << 16], &[])).unwrap();
    let words = words.add(&halves[1]).unwrap();
    // About 2^-6 in either kind of scale.
    let range = if quantization.mode == Mode::Nvfp4 { [0, 16] } else { [119, 123] };
    let scales = whole(seed + 2, range, &sized(columns / quantization.group_size));
    Packed::new(words, scales.as_dtype(Dtype::Uint8).unwrap(), None, quantization).unwrap()
}

fn affine(arrays: &[Array], group: i32, bits: i32) -> Result<Packed> {
    let [words, scales, biases] = arrays else { panic!("words, scales and biases") };
    let quantization = Quantization::affine(group, bits).unwrap();
    Packed::new(words.clone(), scales.clone(), Some(biases.clone()), quantization)
}

fn ours(inputs: &[Array], group: i32, bits: i32) -> Result<Array> {
    native().packed_product(&inputs[0], &affine(&inputs[1..], group, bits)?)
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

/// The weights as floats, with a column per output.
fn columns(weight: &Packed) -> Array {
    weight.dequantized(Dtype::Float32).unwrap().swap_axes(-1, -2).unwrap()
}

/// Up to rounding in sums of numbers that go into the hundreds.
#[track_caller]
fn assert_near(ours: &Array, theirs: &Array, what: &str) {
    let scale = Array::from_f32(1.0 / 16.0);
    assert_close(&ours.multiply(&scale).unwrap(), &theirs.multiply(&scale).unwrap(), what);
}

#[test]
fn every_mode_is_the_product_with_the_weights_unpacked() {
    for quantization in quantizations() {
        for scales in [Dtype::Float32, Dtype::Bfloat16] {
            // One row, some, and more, which meet columns of floats; columns that no block fills.
            for (rows, out, length) in
                [(1, 33, 128), (2, 4, 384), (7, 5, 128), (16, 41, 256), (20, 9, 128)]
            {
                let weight = packed(1, &[out, length], quantization, scales);
                let x = noise(2, &[rows, length]);
                let what = format!("{quantization:?}, {rows} x {out} x {length}, {scales:?}");
                let theirs = matmul(&x, columns(&weight)).unwrap();
                assert_near(&native().packed_product(&x, &weight).unwrap(), &theirs, &what);
                assert_near(&weight.product(&x).unwrap(), &theirs, &format!("MLX's own, {what}"));
            }
        }
    }
}

#[test]
fn each_of_several_products_is_what_it_is_alone_to_the_last_bit() {
    for quantization in quantizations() {
        // Chunks of rows end within matrices and at their ends.
        let weights = [500, 3, 260]
            .map(|out| packed(u64::from(out as u32), &[out, 256], quantization, Dtype::Bfloat16));
        for rows in [1, 3, 8, 17] {
            let x = noise(2, &[rows, 256]);
            let what = format!("{quantization:?}, {rows} rows");
            let [one, two, three] = weights.each_ref();
            let together = native().packed_products(&x, [one, two, three]).unwrap();
            for (product, weight) in together.iter().zip(&weights) {
                let alone = native().packed_product(&x, weight).unwrap();
                assert_eq!(values(product), values(&alone), "{what}");
            }
            let gated = native().gated_packed_product(&x, one, one).unwrap();
            let alone = native().silu_gate(&together[0], &together[0]).unwrap();
            assert_eq!(values(&gated), values(&alone), "{what}, gated");
        }
    }
}

#[test]
fn several_products_have_the_gradients_of_each() {
    let side_by_side = |it: &[Array]| {
        let weights = [affine(&it[1..4], 32, 4)?, affine(&it[4..], 32, 4)?];
        let [one, two] = native().packed_products(&it[0], weights.each_ref())?;
        one.add(two)
    };
    let one_by_one = |it: &[Array]| {
        let second = [&it[..1], &it[4..]].concat();
        theirs(&it[..4], 32, 4)?.add(theirs(&second, 32, 4)?)
    };
    for rows in [2, 18] {
        let first = inputs(&[rows, 64], 5, 32, 4);
        let mut second = first[1..].to_vec();
        second[1] = second[1].multiply(Array::from_f32(2.0)).unwrap();
        let all = [first, second].concat();
        let by_x = |operation: &dyn Fn(&[Array]) -> Result<Array>| {
            let loss =
                |x: &Array| operation(&[&[x.clone()][..], &all[1..]].concat())?.square()?.sum(None);
            grad(loss)(&all[0]).unwrap()
        };
        let (ours, theirs) = (by_x(&side_by_side), by_x(&one_by_one));
        assert_near(&ours, &theirs, &format!("{rows} rows"));
    }
}

#[test]
fn matrices_that_are_packed_in_different_ways_are_not_multiplied_together() {
    let [four, eight] = [4, 8]
        .map(|bits| packed(1, &[5, 64], Quantization::affine(64, bits).unwrap(), Dtype::Bfloat16));
    let error = native().packed_products(&noise(2, &[1, 64]), [&four, &eight]).unwrap_err();
    assert!(error.what().contains("matrices are packed as"), "{error}");
    let none: [&Packed; 0] = [];
    assert!(native().packed_products(&noise(2, &[1, 64]), none).is_err());
}

/// Some processors multiply whole numbers, which inputs become by the group.
#[test]
fn inputs_of_any_size_lose_no_more_than_sums_of_floats_do() {
    let (out, length) = (24, 512);
    for (bits, group) in [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)] {
        let how = Quantization::affine(group, bits).unwrap();
        let weight = packed(1, &[out, length], how, Dtype::Bfloat16);
        let wide = values(&weight.dequantized(Dtype::Float32).unwrap());
        for (size, outlier, bound) in
            [(1.0, 1.0, 2e-7), (1e-25, 1.0, 2e-7), (1e30, 1.0, 2e-7), (1.0, 1000.0, 1e-6)]
        {
            let mut x = values(&noise(2, &[length]));
            x[70] *= outlier;
            x.iter_mut().for_each(|it| *it *= size);
            let x = [x, vec![0.0; length as usize]].concat();
            let rows = Array::from_slice(&x, &[2, length]);
            let ours = values(&native().packed_product(&rows, &weight).unwrap());
            for (row, ours) in wide.chunks(length as usize).zip(&ours) {
                let each = || row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (exact, most) = (each().sum::<f64>(), each().map(f64::abs).sum::<f64>());
                let off = (f64::from(*ours) - exact).abs() / most;
                assert!(off < bound, "{bits} bits, groups of {group}, {size}, {outlier}: {off}");
            }
            assert!(ours[out as usize..].iter().all(|it| *it == 0.0), "zeros make {ours:?}");
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(&noise(2, &[2, length]));
            x[200] = bad;
            let x = Array::from_slice(&x, &[2, length]);
            let ours = values(&native().packed_product(&x, &weight).unwrap());
            let (first, second) = ours.split_at(out as usize);
            assert!(first.iter().all(|it| !it.is_finite()), "{bits} bits with {bad}: {first:?}");
            assert!(second.iter().all(|it| it.is_finite()), "beside {bad}: {second:?}");
        }
    }
}

#[test]
fn an_odd_number_of_nvfp4_groups_is_unpacked() {
    for (shape, ids) in [([3, 16], vec![2]), ([5, 16], vec![0, 4, 1]), ([3, 48], vec![1])] {
        let weight = packed(1, &shape, Quantization::NVFP4, Dtype::Float32);
        // Beside a row of its own kind, which makes their number even, each row is the same.
        let [words, scales] = [weight.words(), weight.scales()]
            .map(|it| mlx_rs::ops::concatenate(&[it, it], 0).unwrap());
        let twice = Packed::new(words, scales, None, Quantization::NVFP4).unwrap();
        let (all, even) = (weight.dequantized(Dtype::Float32), twice.dequantized(Dtype::Float32));
        let even = even.unwrap();
        let ids: Array = Array::from_slice::<i32>(&ids, &[ids.len() as i32]);
        assert_eq!(values(&all.unwrap()), values(&even)[..(shape[0] * shape[1]) as usize]);
        let rows = weight.rows(&ids, Dtype::Float32).unwrap();
        assert_eq!(values(&rows), values(&even.take_axis(&ids, 0).unwrap()));
    }
}

#[test]
fn many_groups_and_chunks_of_work_are_the_same() {
    for quantization in quantizations() {
        let length = 70 * quantization.group_size;
        let weight = packed(1, &[300, length], quantization, Dtype::Bfloat16);
        let x = noise(2, &[3, length]);
        let theirs = matmul(&x, columns(&weight)).unwrap();
        let (ours, scale) = (native().packed_product(&x, &weight).unwrap(), Array::from_f32(0.02));
        let [ours, theirs] = [ours, theirs].map(|it| it.multiply(&scale).unwrap());
        assert_near(&ours, &theirs, &format!("{quantization:?}"));
    }
}

#[test]
fn many_rows_meet_columns_turned_in_several_stretches() {
    for quantization in quantizations() {
        // Groups that end inside a stretch, and words of them that fill no square.
        for groups in [7, 23] {
            let length = groups * quantization.group_size;
            let weight = packed(1, &[70, length], quantization, Dtype::Bfloat16);
            let x = noise(2, &[29, length]);
            let theirs = matmul(&x, columns(&weight)).unwrap();
            let ours = native().packed_product(&x, &weight).unwrap();
            assert_near(&ours, &theirs, &format!("{quantization:?}, {groups} groups"));
        }
    }
}

#[test]
fn rows_are_those_of_the_matrix_unpacked() {
    let ids = Array::from_slice(&[3_u32, 0, 3, 6], &[2, 2]);
    for quantization in quantizations() {
        let weight = packed(1, &[7, 128], quantization, Dtype::Bfloat16);
        let all = weight.dequantized(Dtype::Float32).unwrap();
        let rows = weight.rows(&ids, Dtype::Float32).unwrap();
        assert_eq!(rows.shape(), [2, 2, 128]);
        assert_eq!(values(&rows), values(&all.take_axis(&ids, 0).unwrap()), "{quantization:?}");
    }
}

#[test]
fn a_row_is_the_same_to_the_last_bit_whatever_is_beside_it() {
    for quantization in quantizations() {
        let weight = packed(1, &[50, 256], quantization, Dtype::Float32);
        let x = noise(2, &[16, 256]);
        let first = |count: i32| {
            let rows = x.split_at_indices(&[count], 0).unwrap().swap_remove(0);
            values(&native().packed_product(&rows, &weight).unwrap())[..50].to_vec()
        };
        let alone = first(1);
        for count in 2..=16 {
            assert_eq!(first(count), alone, "{quantization:?} beside {} others", count - 1);
        }
    }
}

/// Rows of inputs and chosen matrices: one row for all of a token's, one for each, several tokens to an
/// expert and so many that BLAS is worth it, several rows to a place.
const PLACES: [(&[i32], &[i32]); 6] = [
    (&[1, 1, 1, 1], &[1, 1, 2]),
    (&[2, 3, 1, 1], &[2, 3, 2]),
    (&[2, 3, 2, 1], &[2, 3, 2]),
    (&[1, 60, 1, 1], &[1, 60, 2]),
    (&[1, 5, 2, 7], &[1, 5, 2]),
    (&[1, 4, 1], &[5, 4]),
];

#[test]
fn chosen_matrices_are_multiplied_by() {
    for (leading, places) in PLACES {
        let x = noise(3, &[leading, &[64]].concat());
        let chosen = whole(4, [0, 4], places);
        let what = format!("{:?} with {places:?}", x.shape());
        let weight = bf16_noise(1, &[4, 9, 64]);
        let wide = weight.as_dtype(Dtype::Float32).unwrap().swap_axes(-1, -2).unwrap();
        let theirs = |x: &Array, wide: &Array| gather_mm(x, wide, None, &chosen, false);
        let ours = native().gathered_widening_product(&x, &weight, &chosen).unwrap();
        assert_close(&ours, &theirs(&x, &wide).unwrap(), &what);
        for quantization in [
            Quantization::affine(64, 4).unwrap(),
            Quantization::affine(32, 6).unwrap(),
            Quantization::MXFP4,
            Quantization::MXFP8,
            Quantization::NVFP4,
        ] {
            let weight = packed(1, &[4, 9, 64], quantization, Dtype::Bfloat16);
            let theirs = theirs(&x, &columns(&weight)).unwrap();
            let what = format!("{what}, {quantization:?}");
            let ours = native().gathered_packed_product(&x, &weight, &chosen).unwrap();
            assert_near(&ours, &theirs, &what);
            let of_mlx = weight.gathered_product(&x, &chosen).unwrap();
            assert_near(&of_mlx, &theirs, &format!("MLX's own, {what}"));
        }
    }
}

#[test]
fn it_is_the_same_in_every_layout_and_in_the_gradients() {
    for (leading, places) in [PLACES[1], PLACES[4], (&[1, 30, 1, 1], &[1, 30, 2])] {
        let x = noise(3, &[leading, &[32]].concat());
        let chosen = whole(4, [0, 3], places);
        // As columns of something else.
        let turned = chosen.t().contiguous().unwrap().t();
        for chosen in [&chosen, &turned] {
            let weight = bf16_noise(1, &[3, 5, 32]);
            assert_same(
                &format!("bf16, {places:?}"),
                &|it| native().gathered_widening_product(&it[0], &it[1], chosen),
                &|it| {
                    let wide = it[1].as_dtype(Dtype::Float32)?.swap_axes(-1, -2)?;
                    gather_mm(&it[0], &wide, None, chosen, false)
                },
                &[x.clone(), weight],
            );
        }
        for quantization in [Quantization::affine(32, 4).unwrap(), Quantization::MXFP4] {
            let weight = packed(1, &[3, 5, 32], quantization, Dtype::Float32);
            let wide = columns(&weight);
            assert_same(
                &format!("{quantization:?}, {places:?}"),
                &|it| native().gathered_packed_product(&it[0], &weight, &chosen),
                &|it| gather_mm(&it[0], &wide, None, &chosen, false),
                std::slice::from_ref(&x),
            );
        }
    }
    let weight = packed(1, &[5, 64], Quantization::NVFP4, Dtype::Float32);
    let wide = columns(&weight);
    assert_same(
        "nvfp4",
        &|it| native().packed_product(&it[0], &weight),
        &|it| -> Result<Array> { matmul(&it[0], &wide) },
        &[noise(2, &[2, 3, 64])],
    );
}

#[test]
fn gated_and_mixed_products_are_their_formulas() {
    // Few rows for each expert, and so many that some are multiplied in the way of many rows.
    for tokens in [1, 3, 60] {
        let x = noise(3, &[tokens, 32]);
        let chosen = whole(4, [0, 3], &[tokens, 2]);
        let rows = |x: &Array| if x.ndim() == 2 { x.expand_dims(-2) } else { Ok(x.clone()) };
        let gate = |gate: &Array, up: &Array| native().silu_gate(gate, up);
        let gathered = |x: &Array, weight: &Array| {
            let y = native().gathered_widening_product(&rows(x)?.expand_dims(-2)?, weight, &chosen);
            y?.squeeze_axes(&[-2])
        };
        assert_same(
            &format!("gated, bf16, {tokens} tokens"),
            &|it| native().gathered_gated_widening_product(&it[0], [&it[1], &it[2]], &chosen),
            &|it| gate(&gathered(&it[0], &it[1])?, &gathered(&it[0], &it[2])?),
            &[x.clone(), bf16_noise(1, &[3, 70, 32]), bf16_noise(2, &[3, 70, 32])],
        );
        assert_same(
            &format!("gated halves, bf16, {tokens} tokens"),
            &|it| native().gathered_gated_widening_product(&it[0], [&it[1]], &chosen),
            &|it| {
                let halves = gathered(&it[0], &it[1])?.split_equal(2, -1)?;
                gate(&halves[0], &halves[1])
            },
            &[x.clone(), bf16_noise(1, &[3, 10, 32])],
        );
        let mix =
            |y: Array, shares: &Array| y.multiply(shares.expand_dims(-1)?)?.sum_axis(-2, false);
        assert_same(
            &format!("mixed, bf16, {tokens} tokens"),
            &|it| native().mixed_widening_product(&it[0], &it[1], &chosen, &it[2]),
            &|it| mix(gathered(&it[0], &it[1])?, &it[2]),
            &[noise(5, &[tokens, 2, 32]), bf16_noise(1, &[3, 9, 32]), noise(6, &[tokens, 2])],
        );
        for quantization in [Quantization::affine(32, 4).unwrap(), Quantization::MXFP4] {
            let [one, other] =
                [1, 2].map(|it| packed(it, &[3, 10, 32], quantization, Dtype::Float32));
            let gathered = |x: &Array, weight: &_| {
                let x = rows(x)?.expand_dims(-2)?;
                native().gathered_packed_product(&x, weight, &chosen)?.squeeze_axes(&[-2])
            };
            assert_same(
                &format!("gated, {quantization:?}, {tokens} tokens"),
                &|it| native().gathered_gated_packed_product(&it[0], [&one, &other], &chosen),
                &|it| gate(&gathered(&it[0], &one)?, &gathered(&it[0], &other)?),
                std::slice::from_ref(&x),
            );
            assert_same(
                &format!("gated halves, {quantization:?}, {tokens} tokens"),
                &|it| native().gathered_gated_packed_product(&it[0], [&one], &chosen),
                &|it| {
                    let halves = gathered(&it[0], &one)?.split_equal(2, -1)?;
                    gate(&halves[0], &halves[1])
                },
                std::slice::from_ref(&x),
            );
            assert_same(
                &format!("mixed, {quantization:?}, {tokens} tokens"),
                &|it| native().mixed_packed_product(&it[0], &one, &chosen, &it[1]),
                &|it| mix(gathered(&it[0], &one)?, &it[1]),
                &[noise(5, &[tokens, 2, 32]), noise(6, &[tokens, 2])],
            );
        }
    }
}

#[test]
fn where_there_is_no_such_matrix_there_is_no_number() {
    let weight = bf16_noise(1, &[3, 5, 8]);
    let chosen = Array::from_slice(&[2_u32, 3, 0, u32::MAX], &[4]);
    let product =
        native().gathered_widening_product(&noise(2, &[4, 1, 8]), &weight, &chosen).unwrap();
    let nan: Vec<bool> = values(&product).chunks(5).map(|it| it[0].is_nan()).collect();
    assert_eq!(nan, [false, true, false, true]);
    let (x, chosen) = (noise(2, &[2, 2, 8]), chosen.reshape(&[2, 2]).unwrap());
    let shares = Array::from_slice(&[0.5_f32; 4], &[2, 2]);
    let mixed = native().mixed_widening_product(&x, &weight, &chosen, &shares).unwrap();
    assert!(values(&mixed).iter().all(|it| it.is_nan()));
    let x = noise(2, &[2, 8]);
    let gated = native().gathered_gated_widening_product(&x, [&weight, &weight], &chosen).unwrap();
    let nan: Vec<bool> = values(&gated).chunks(5).map(|it| it[0].is_nan()).collect();
    assert_eq!(nan, [false, true, false, true]);
}

#[test]
fn nothing_gives_nothing_and_sums_over_nothing_are_zero() {
    let none = Array::from_slice::<u32>(&[], &[0, 2]);
    let chosen = whole(4, [0, 3], &[3, 2]);
    let product = native().gathered_widening_product(
        &noise(1, &[0, 1, 1, 8]),
        &bf16_noise(1, &[3, 5, 8]),
        &none,
    );
    let product = product.unwrap();
    product.eval().unwrap();
    assert_eq!(product.shape(), [0, 2, 1, 5]);
    let product = native().gathered_widening_product(
        &noise(1, &[3, 1, 1, 0]),
        &bf16_noise(1, &[3, 5, 0]),
        &chosen,
    );
    assert_eq!(values(&product.unwrap()), [0.0; 30]);
    let (x, weight) = (noise(1, &[3, 0]), bf16_noise(1, &[3, 4, 0]));
    let gated = native().gathered_gated_widening_product(&x, [&weight], &chosen).unwrap();
    assert_eq!(values(&gated), [0.0; 12]);
    let x = noise(1, &[3, 2, 0]);
    let mixed = native().mixed_widening_product(&x, &weight, &chosen, &noise(2, &[3, 2])).unwrap();
    assert_eq!(mixed.shape(), [3, 4]);
    assert_eq!(values(&mixed), [0.0; 12]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let weight = bf16_noise(1, &[3, 5, 8]);
    let chosen = whole(4, [0, 3], &[4, 2]);
    for x in [&[4, 1, 1, 7][..], &[3, 1, 1, 8], &[4, 1, 8], &[4, 3, 1, 8], &[8]] {
        let error = native().gathered_widening_product(&noise(2, x), &weight, &chosen).unwrap_err();
        assert!(error.what().contains("x is [chosen.. or 1, rows, in]"), "{error}");
    }
    let x = noise(2, &[4, 1, 1, 8]);
    let of_places = noise(3, &[4, 2, 8]);
    for shares in [&[4][..], &[4, 1], &[2, 4]] {
        let shares = noise(3, shares);
        let error = native().mixed_widening_product(&of_places, &weight, &chosen, &shares);
        let error = error.unwrap_err();
        assert!(error.what().contains("chosen and shares are [tokens.., chosen]"), "{error}");
    }
    let shares = noise(3, &[4, 2]);
    for x in [&[4, 8][..], &[4, 2, 1, 8], &[4, 2, 7]] {
        assert!(native().mixed_widening_product(&noise(2, x), &weight, &chosen, &shares).is_err());
    }
    let (even, of_tokens) = (bf16_noise(1, &[3, 6, 8]), noise(2, &[4, 8]));
    for x in [&[8][..], &[3, 8], &[4, 7], &[4, 2, 8]] {
        let error = native().gathered_gated_widening_product(&noise(2, x), [&even], &chosen);
        let error = error.unwrap_err();
        assert!(error.what().contains("x is [tokens.., in], chosen [tokens.., any]"), "{error}");
    }
    let error = native().gathered_gated_widening_product(&of_tokens, [&weight], &chosen);
    let error = error.unwrap_err();
    assert!(error.what().contains("or one with the rows of both, found [[3, 5, 8]]"), "{error}");
    let gated = native().gathered_gated_widening_product(&of_tokens, [&weight, &even], &chosen);
    assert!(gated.unwrap_err().what().contains("are not of one shape"));
    let signed = chosen.as_dtype(Dtype::Int32).unwrap();
    assert!(native().gathered_widening_product(&x, &weight, &signed).is_err());
    let narrow = x.as_dtype(Dtype::Float16).unwrap();
    assert!(native().gathered_widening_product(&narrow, &weight, &chosen).is_err());
    let single = packed(1, &[5, 64], Quantization::MXFP4, Dtype::Float32);
    let x = noise(2, &[4, 1, 1, 64]);
    assert!(native().gathered_packed_product(&x, &single, &chosen).is_err());
    assert!(native().packed_product(&x.as_dtype(Dtype::Float16).unwrap(), &single).is_err());
    let halves = packed(1, &[5, 64], Quantization::affine(32, 4).unwrap(), Dtype::Float16);
    let error = native().packed_product(&x, &halves).unwrap_err();
    assert!(error.what().contains("`scales` is Float16"), "{error}");
    assert!(halves.dequantized(Dtype::Uint32).is_err());
}

#[test]
fn affine_weights_are_the_same_in_every_layout_and_have_gradients() {
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
fn it_is_the_same_for_many_columns_and_several_blocks() {
    for (rows, columns, length) in [(1, 3000, 256), (5, 1000, 512), (40, 300, 4096)] {
        let inputs = inputs(&[rows, length], columns, 64, 4);
        let what = format!("{rows} x {columns} x {length}");
        assert_close(&ours(&inputs, 64, 4).unwrap(), &theirs(&inputs, 64, 4).unwrap(), &what);
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
fn what_is_no_packed_weight_is_refused() {
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
