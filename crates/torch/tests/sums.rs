//! Sums and the softmax on random rows: close to the true values, and the same whichever way a row
//! is given.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_torch::{Places, RowSum, SparseRow, exp, exp_each, max, softmax, sum_of_exp};
use proptest::prelude::*;

fn row() -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![8 => -30.0f32..30.0, 1 => Just(f32::NEG_INFINITY)];
    let row = prop_oneof![
        prop::collection::vec(score.clone(), 1..70),
        prop::collection::vec(score, 1000..9000),
    ];
    row.prop_filter("a score must be left", |row| row.iter().any(|it| it.is_finite()))
}

/// The softmax in double precision.
fn exact(row: &[f32]) -> Vec<f64> {
    let max = f64::from(max(row));
    let terms: Vec<f64> = row.iter().map(|&it| (f64::from(it) - max).exp()).collect();
    let sum: f64 = terms.iter().sum();
    terms.iter().map(|it| it / sum).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn softmax_is_close_and_reuses_its_buffer(first in row(), second in row()) {
        let mut probs = Vec::new();
        for row in [&first, &second, &first] {
            softmax(row, &mut probs);
            prop_assert_eq!(probs.len(), row.len());
            for (&found, expected) in probs.iter().zip(exact(row)) {
                prop_assert!((f64::from(found) - expected).abs() <= expected * 1e-5 + 1e-40);
            }
        }
    }

    #[test]
    fn loops_and_single_calls_give_the_same_bits(row in row()) {
        let highest = max(&row);
        let mut each = vec![0.0; row.len()];
        exp_each(&row, highest, &mut each);
        let alone: Vec<f32> = row.iter().map(|it| exp(it - highest)).collect();
        prop_assert_eq!(&each, &alone);
        let whole = SparseRow { len: row.len(), places: Places::From(0) };
        prop_assert_eq!(whole.softmax_sum(&each), sum_of_exp(&row, highest));
        let mut sum = RowSum::new(row.len());
        each.iter().enumerate().for_each(|(place, &term)| sum.add(place, term));
        prop_assert_eq!(whole.sum(&each), sum.finish());
    }
}
