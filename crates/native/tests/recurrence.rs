//! Recurrences against their definition in MLX's operations.

#![cfg(mlxgk_native_ops)]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod common;

use common::{assert_close, assert_same, native, noise, values};
use mlx_rs::{
    Array,
    error::Result,
    ops::{broadcast_to, concatenate, indexing::TryIndexOp, rsqrt, sigmoid, stack},
};

/// Sizes of what a recurrence is given.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: i32,
    tokens: i32,
    key_heads: i32,
    groups: i32,
    key_dim: i32,
    value_dim: i32,
    by_row: bool,
    delta: bool,
    unit: bool,
}

const SMALL: Sizes = Sizes {
    batch: 2,
    tokens: 3,
    key_heads: 2,
    groups: 2,
    key_dim: 5,
    value_dim: 3,
    by_row: false,
    delta: true,
    unit: true,
};

impl Sizes {
    /// Queries, keys, values, decays, the state, and rates where there are any.
    fn inputs(self) -> Vec<Array> {
        let Self { batch, tokens, key_heads, groups, key_dim, value_dim, by_row, .. } = self;
        let heads = key_heads * groups;
        let scaled = |it: Array, by: f32| it.multiply(Array::from_f32(by)).unwrap();
        // Of length about 1, so that states stay in bounds where that is not made so.
        let small = (key_dim as f32).powf(-0.5);
        let fading = noise(4, &[batch, tokens, heads, if by_row { key_dim } else { 1 }]);
        let mut inputs = vec![
            scaled(noise(1, &[batch, tokens, key_heads, key_dim]), small),
            scaled(noise(2, &[batch, tokens, key_heads, key_dim]), small),
            noise(3, &[batch, tokens, heads, value_dim]),
            scaled(fading.square().unwrap(), -0.3),
            noise(5, &[batch, heads, key_dim, value_dim]),
        ];
        if self.delta {
            inputs.push(sigmoid(noise(6, &[batch, tokens, heads, 1])).unwrap());
        }
        inputs
    }

    fn ours(self, inputs: &[Array]) -> Result<[Array; 2]> {
        let [queries, keys, values, decays, state] = [0, 1, 2, 3, 4].map(|at| &inputs[at]);
        native().recurrence([queries, keys, values], decays, inputs.get(5), state, self.unit)
    }

    /// One token after another.
    fn theirs(self, inputs: &[Array]) -> Result<[Array; 2]> {
        let Self { batch, tokens, key_heads, groups, key_dim, .. } = self;
        let by_head = |it: &Array, length: f32| {
            let mut it = it.clone();
            if self.unit {
                let square = it.square()?.sum_axis(-1, true)?.add(Array::from_f32(1e-6))?;
                it = it.multiply(rsqrt(square)?.multiply(Array::from_f32(length))?)?;
            }
            let it = it.expand_dims(3)?;
            broadcast_to(it, &[batch, tokens, key_heads, groups, key_dim])?.reshape(&[
                batch,
                tokens,
                key_heads * groups,
                key_dim,
                1,
            ])
        };
        let queries = by_head(&inputs[0], (key_dim as f32).powf(-0.5))?;
        let keys = by_head(&inputs[1], 1.0)?;
        let (mut state, mut outputs) = (inputs[4].clone(), Vec::new());
        for token in 0..tokens {
            let at = |it: &Array| it.try_index((.., token));
            state = state.multiply(at(&inputs[3])?.exp()?.expand_dims(-1)?)?;
            let mut change = at(&inputs[2])?;
            if let Some(rates) = inputs.get(5) {
                let held = state.multiply(at(&keys)?)?.sum_axis(-2, false)?;
                change = change.subtract(held)?.multiply(at(rates)?)?;
            }
            state = state.add(at(&keys)?.multiply(change.expand_dims(-2)?)?)?;
            outputs.push(state.multiply(at(&queries)?)?.sum_axis(-2, false)?);
        }
        Ok([stack(&outputs, 1)?, state])
    }
}

#[test]
fn it_is_its_definition_in_every_layout_and_gradient() {
    for (by_row, delta, unit) in
        [(false, true, true), (true, true, true), (false, false, false), (true, false, false)]
    {
        let sizes = Sizes { by_row, delta, unit, ..SMALL };
        for part in [0, 1] {
            assert_same(
                &format!("{sizes:?}, result {part}"),
                &|it| Ok(sizes.ours(it)?[part].clone()),
                &|it| Ok(sizes.theirs(it)?[part].clone()),
                &sizes.inputs(),
            );
        }
    }
}

/// Columns that fill vectors and that do not, one head and several, and lengths around those that are made
/// ready together.
#[test]
fn sizes_do_not_matter() {
    for (batch, tokens, key_heads, groups, key_dim, value_dim) in [
        (1, 1, 1, 1, 1, 1),
        (1, 1, 2, 3, 128, 128),
        (3, 2, 1, 2, 16, 32),
        (1, 63, 3, 1, 17, 33),
        (2, 64, 1, 4, 32, 16),
        (1, 65, 2, 1, 64, 70),
        (1, 200, 1, 2, 128, 128),
    ] {
        for (by_row, delta, unit) in
            [(false, true, true), (true, true, true), (false, false, false), (true, false, true)]
        {
            let sizes =
                Sizes { batch, tokens, key_heads, groups, key_dim, value_dim, by_row, delta, unit };
            let inputs = sizes.inputs();
            let (ours, theirs) = (sizes.ours(&inputs).unwrap(), sizes.theirs(&inputs).unwrap());
            for (part, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                assert_close(ours, theirs, &format!("{sizes:?}, result {part}"));
            }
        }
    }
}

/// A text that is read in parts is read as in one.
#[test]
fn a_state_is_continued() {
    let sizes = Sizes { tokens: 100, key_dim: 20, value_dim: 40, ..SMALL };
    let inputs = sizes.inputs();
    let [outputs, end] = sizes.ours(&inputs).unwrap();
    for cut in [1, 37, 64, 99] {
        let of = |from: i32, to: i32, state: &Array| {
            let part = |it: &Array| it.try_index((.., from..to)).unwrap();
            let mut inputs: Vec<Array> = inputs.iter().map(part).collect();
            inputs[4] = state.clone();
            sizes.ours(&inputs).unwrap()
        };
        let [first, state] = of(0, cut, &inputs[4]);
        let [second, state] = of(cut, sizes.tokens, &state);
        let both = concatenate(&[first, second], 1).unwrap();
        assert_eq!(values(&both), values(&outputs), "{cut}");
        assert_eq!(values(&state), values(&end), "{cut}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |at: usize, shape: &[i32]| {
        let mut inputs = SMALL.inputs();
        inputs[at] = noise(7, shape);
        SMALL.ours(&inputs).unwrap_err().what().to_owned()
    };
    for (at, shape) in [
        (0, &[2, 3, 2, 4][..]),
        (1, &[2, 3, 2]),
        (2, &[2, 3, 3, 3]),
        (3, &[2, 3, 4, 2]),
        (4, &[2, 4, 3, 5]),
        (5, &[2, 3, 4, 5]),
    ] {
        let error = refused(at, shape);
        assert!(error.contains("do not fit: queries and keys are"), "{error}");
    }
    let none = Sizes { tokens: 0, ..SMALL };
    assert!(none.ours(&none.inputs()).is_err());
}
