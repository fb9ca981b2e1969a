//! Routing against what it is made of in MLX's operations.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_close, assert_same, native, noise, values};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{
        arange, argpartition_axis, gather_mm,
        indexing::{Ellipsis, TryIndexOp},
        maximum, sigmoid, softmax_axis, tanh,
    },
    stop_gradient,
    transforms::grad,
};
use mlxgk_native::routing::{Groups, Routing, Scores};

/// Shares at the places of their experts, `[.., experts]`, and 0 elsewhere: the order of experts does not count.
fn placed(chosen: &Array, shares: &Array, experts: i32) -> Result<Array> {
    let places = arange::<_, u32>(None, experts, None)?;
    let hits = chosen.expand_dims(-1)?.eq(&places)?;
    hits.multiply(shares.expand_dims(-1)?)?.sum_axis(-2, false)
}

fn ours(routing: &Routing, inputs: &[Array]) -> Result<Array> {
    let (chosen, shares) = native().route(&inputs[0], inputs.get(1), routing)?;
    placed(&chosen, &shares, inputs[0].dim(-1))
}

/// Without groups.
fn theirs(routing: &Routing, inputs: &[Array]) -> Result<Array> {
    let logits = match routing.logit_cap.map(Array::from_f32) {
        None => inputs[0].clone(),
        Some(cap) => tanh(inputs[0].divide(&cap)?)?.multiply(&cap)?,
    };
    let scores = match routing.scores {
        Scores::Softmax => softmax_axis(&logits, -1, true)?,
        Scores::Logits => logits,
        Scores::Sigmoid => sigmoid(&logits)?,
    };
    let judged = inputs.get(1).map(|it| scores.add(it)).transpose()?;
    let count = routing.chosen as i32;
    let order = argpartition_axis(judged.as_ref().unwrap_or(&scores).negative()?, count - 1, -1)?;
    let chosen = stop_gradient(order.try_index((Ellipsis, 0..count))?)?;
    let mut shares = scores.take_along_axis(&chosen, -1)?;
    if routing.scores == Scores::Logits {
        shares = softmax_axis(&shares, -1, true)?;
    }
    if let Some(epsilon) = routing.normalise {
        let sum = shares.sum_axis(-1, true)?.add(Array::from_f32(epsilon))?;
        shares = shares.divide(maximum(sum, Array::from_f32(routing.least_sum))?)?;
    }
    placed(&chosen, &shares.multiply(Array::from_f32(routing.scale))?, inputs[0].dim(-1))
}

#[test]
fn it_is_what_it_is_made_of_in_every_layout_and_in_the_gradients() {
    let of = |scores| Routing::new(scores, 3);
    let normalise = Some(0.0);
    for routing in [
        of(Scores::Softmax),
        Routing { normalise, ..of(Scores::Softmax) },
        of(Scores::Logits),
        Routing { normalise: Some(0.5), scale: 2.5, ..of(Scores::Sigmoid) },
        Routing { normalise, least_sum: 0.6, ..of(Scores::Softmax) },
        Routing { normalise, logit_cap: Some(0.7), ..of(Scores::Sigmoid) },
    ] {
        for shape in [&[12][..], &[1, 1, 33], &[2, 5, 16], &[300, 7]] {
            let experts = shape[shape.len() - 1];
            // Broadcast logits would be equal, and what is chosen of these is left open.
            let logits = noise(1, shape);
            let what = format!("{routing:?}, {shape:?}");
            let inputs = [logits.clone(), noise(2, &[experts])];
            for inputs in [&inputs[..1], &inputs[..]] {
                let (ours, theirs) = (ours(&routing, inputs), theirs(&routing, inputs));
                assert_close(&ours.unwrap(), &theirs.unwrap(), &what);
            }
        }
    }
    // Corrections large enough for equal logits not to be equally good.
    let routing = Routing { normalise, ..of(Scores::Sigmoid) };
    let correction = noise(2, &[1, 9]);
    assert_same(
        "logits",
        &|it| ours(&routing, &[it[0].clone(), correction.clone()]),
        &|it| theirs(&routing, &[it[0].clone(), correction.clone()]),
        &[noise(1, &[2, 3, 9])],
    );
    let logits = noise(1, &[2, 3, 9]);
    let loss = |it: &Array| ours(&routing, &[logits.clone(), it.clone()])?.sum(None);
    assert_eq!(values(&grad(loss)(&correction).unwrap()), [0.0; 9]);
    // The choice may be used where no gradient could be taken by it.
    let loss = |it: &Array| {
        let (chosen, shares) = native().route(it, None, &routing)?;
        let x = noise(3, &[2, 3, 1, 1, 4]);
        let y = gather_mm(&x, noise(4, &[9, 4, 1]), None, &chosen, false)?;
        y.squeeze_axes(&[-1, -2])?.multiply(shares)?.sum(None)
    };
    assert!(values(&grad(loss)(&logits).unwrap()).iter().any(|it| *it != 0.0));
}

#[test]
fn the_best_come_first_and_of_equal_ones_the_first() {
    let logits = Array::from_slice(&[1.0_f32, 3.0, 3.0, f32::NEG_INFINITY, 5.0, 3.0], &[1, 6]);
    let routing = Routing::new(Scores::Logits, 4);
    let (chosen, shares) = native().route(&logits, None, &routing).unwrap();
    assert_eq!(chosen.to_vec_exact::<u32>().unwrap(), [4, 1, 2, 5]);
    let total = 1.0 + 3.0 * (-2.0_f32).exp();
    for (share, power) in values(&shares).iter().zip([0.0, -2.0, -2.0, -2.0_f32]) {
        assert!((share - power.exp() / total).abs() < 1e-6, "{share}");
    }
}

#[test]
fn experts_come_from_the_best_groups() {
    // Sums of the two best of a group are 5, 6, 7 and 1.
    let logits = [5.0_f32, 0.0, 0.0, 3.0, 3.0, 2.0, 4.0, 3.0, 1.0, 0.5, 0.5, 0.0];
    let logits = Array::from_slice(&logits, &[1, 12]);
    let groups = Some(Groups { count: 4, kept: 2, judged_by: 2 });
    let routing = Routing { groups, ..Routing::new(Scores::Logits, 3) };
    let (chosen, _) = native().route(&logits, None, &routing).unwrap();
    assert_eq!(chosen.to_vec_exact::<u32>().unwrap(), [6, 3, 4]);
    let groups = Some(Groups { count: 4, kept: 2, judged_by: 1 });
    let routing = Routing { groups, ..routing };
    let (chosen, _) = native().route(&logits, None, &routing).unwrap();
    assert_eq!(chosen.to_vec_exact::<u32>().unwrap(), [0, 6, 7]);
    // A correction takes part in the choice of groups, and not in the shares.
    let mut correction = [0.0_f32; 12];
    correction[9..].fill(10.0);
    let correction = Array::from_slice(&correction, &[12]);
    let (chosen, shares) = native().route(&logits, Some(&correction), &routing).unwrap();
    assert_eq!(chosen.to_vec_exact::<u32>().unwrap(), [9, 10, 11]);
    let total = 2.0 + (-0.5_f32).exp();
    assert!((values(&shares)[0] - 1.0 / total).abs() < 1e-6);
}

#[test]
fn what_is_no_number_is_chosen_and_seen() {
    for at in [0, 4] {
        let mut logits = [0.5_f32, 1.5, 2.5, 3.5, 4.5];
        logits[at] = f32::NAN;
        let logits = Array::from_slice(&logits, &[1, 5]);
        let routing = Routing { normalise: Some(0.0), ..Routing::new(Scores::Sigmoid, 2) };
        let (chosen, shares) = native().route(&logits, None, &routing).unwrap();
        assert_eq!(chosen.to_vec_exact::<u32>().unwrap()[0], at as u32);
        assert!(values(&shares).iter().all(|it| it.is_nan()), "{shares:?}");
    }
}

#[test]
fn no_tokens_are_fed_to_nothing() {
    let (chosen, shares) =
        native().route(&noise(1, &[0, 5]), None, &Routing::new(Scores::Softmax, 2)).unwrap();
    assert_eq!((chosen.shape(), shares.shape()), (&[0, 2][..], &[0, 2][..]));
    shares.eval().unwrap();
}

#[test]
fn what_does_not_fit_is_refused() {
    let logits = noise(1, &[3, 12]);
    let softmax = |chosen| Routing::new(Scores::Softmax, chosen);
    let grouped = |count, kept, judged_by| Routing {
        groups: Some(Groups { count, kept, judged_by }),
        ..softmax(4)
    };
    for routing in [
        softmax(0),
        softmax(13),
        grouped(5, 2, 1),
        grouped(0, 0, 0),
        grouped(4, 5, 1),
        grouped(4, 1, 1),
        grouped(4, 2, 0),
        grouped(4, 2, 4),
    ] {
        let error = native().route(&logits, None, &routing).unwrap_err();
        assert!(error.what().contains("there are 12 experts, too few for"), "{error}");
    }
    let error = native().route(&logits, Some(&noise(2, &[11])), &softmax(2)).unwrap_err();
    assert!(error.what().contains("`logits` [3, 12], `correction` [11] do not fit"), "{error}");
    let whole = logits.as_dtype(Dtype::Int32).unwrap();
    let error = native().route(&whole, None, &softmax(2)).unwrap_err();
    assert!(error.what().contains("`logits` is Int32, expected Float32"), "{error}");
    assert!(native().route(&Array::from_f32(1.0), None, &softmax(1)).is_err());
}
