//! torch's sums over rows of which most terms are zero.
//!
//! Which tokens survive top-p depends on the last bits of a softmax: over 150,000 tokens, summing
//! in another order moves the sum by up to 400 ulp, and the cut with it. The terms that are left of
//! a row keep their places in it, and so their lanes.

use crate::math::{GROUP, LANES, RowSum, exp, fold, ln};
use crate::vector;

/// The fp32 number nearest to `e^x`, in all but a few cases in a thousand, for `x <= 0`.
///
/// `torch.exp` is another kernel than the softmax's, and comes closer to this one.
#[inline(always)]
fn exp_nearest(x: f32) -> f32 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let wide = f64::from(x);
    let shifted = wide * std::f64::consts::LOG2_E + ROUND;
    let s = wide - (shifted - ROUND) * std::f64::consts::LN_2;
    // The Taylor series; the first term left out is below 2^-32.
    let mut u = 1.0 / 40_320.0;
    for c in [1.0 / 5_040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        u = u * s + c;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < -104.0 { 0.0 } else { (u * power) as f32 }
}

/// A row of terms of which all that are missing are zero, and so change no sum.
///
/// ```
/// use mlxgk_torch::{Places, SparseRow};
///
/// // torch.tensor([0.0, 0.5, 0.0, 0.25]).sum()
/// let row = SparseRow { len: 4, places: Places::At(&[1, 3]) };
/// assert_eq!(row.sum(&[0.5, 0.25]), 0.75);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SparseRow<'a> {
    /// The length of the whole row.
    pub len: usize,
    /// Where in it the terms stand.
    pub places: Places<'a>,
}

/// Where in a row terms stand.
///
/// See the example of [`SparseRow`].
#[derive(Debug, Clone, Copy)]
pub enum Places<'a> {
    /// One after the other, from this place on.
    From(usize),
    /// At these places, in ascending order.
    At(&'a [u32]),
}

impl SparseRow<'_> {
    /// The sum in torch's softmax: 16 running sums, folded in halves; of a shorter row, one.
    pub fn softmax_sum(self, terms: &[f32]) -> f32 {
        if self.len < LANES {
            return terms.iter().sum();
        }
        let mut lanes = [0.0; LANES];
        match self.places {
            Places::At(places) => {
                for (&place, term) in places.iter().zip(terms) {
                    lanes[place as usize % LANES] += term;
                }
            }
            Places::From(first) => {
                let (head, terms) = terms.split_at((first.wrapping_neg() % LANES).min(terms.len()));
                add(&mut lanes[first % LANES..], head);
                let (chunks, rest) = terms.as_chunks::<LANES>();
                for chunk in chunks {
                    add(&mut lanes, chunk);
                }
                add(&mut lanes, rest);
            }
        }
        fold(lanes)
    }

    /// `torch.sum`: a cascade, in which blocks of sums move up from level to level.
    pub fn sum(self, terms: &[f32]) -> f32 {
        let mut sum = RowSum::new(self.len);
        match self.places {
            Places::At(places) => {
                for (&place, &term) in places.iter().zip(terms) {
                    sum.add(place as usize, term);
                }
            }
            Places::From(first) => {
                let (head, terms) = terms.split_at((first.wrapping_neg() % GROUP).min(terms.len()));
                for (at, &term) in head.iter().enumerate() {
                    sum.add(first + at, term);
                }
                let first = first + head.len();
                let (groups, rest) = terms.as_chunks::<GROUP>();
                for (group, terms) in groups.iter().enumerate() {
                    sum.add_group(first / GROUP + group, terms);
                }
                for (at, &term) in rest.iter().enumerate() {
                    sum.add(first + groups.len() * GROUP + at, term);
                }
            }
        }
        sum.finish()
    }

    /// `torch.distributions.Categorical(logits=...)`: fills in `probs`, returns the entropy in
    /// nats. `max` is the highest of the logits, `terms` working space; all three slices are of one
    /// length.
    pub fn categorical(
        self,
        logits: &[f32],
        max: f32,
        probs: &mut [f32],
        terms: &mut [f32],
    ) -> f32 {
        vector::map(logits, terms, move |logit| exp_nearest(logit - max));
        let log_sum = ln(self.sum(terms)) + max;
        let max = max - log_sum;
        vector::map(logits, probs, move |logit| exp((logit - log_sum) - max));
        let scale = 1.0 / self.softmax_sum(probs);
        for ((term, logit), prob) in terms.iter_mut().zip(logits).zip(probs) {
            *prob *= scale;
            // torch clamps the logits, so that a banned one times zero is zero.
            *term = (logit - log_sum).max(f32::MIN) * *prob;
        }
        -self.sum(terms)
    }

    /// The entropy in nats of the distribution whose log-probabilities are `log_prob` of the scores,
    /// as `torch.nansum` of `log p * exp(log p)` gives it; `terms` is working space as long as
    /// `scores`.
    pub fn entropy(self, scores: &[f32], log_prob: impl Fn(f32) -> f32, terms: &mut [f32]) -> f32 {
        vector::map(scores, terms, move |&score| {
            let log_prob = log_prob(score);
            // What is banned would give infinity times zero, which `nansum` passes over.
            exp_nearest(log_prob) * log_prob.max(f32::MIN)
        });
        -self.sum(terms)
    }
}

fn add(sums: &mut [f32], terms: &[f32]) {
    for (sum, term) in sums.iter_mut().zip(terms) {
        *sum += term;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaving out the zeros of a row changes no sum.
    #[test]
    fn zeros_may_be_left_out() {
        for len in [1, 7, 15, 16, 17, 63, 64, 65, 1000, 4095, 70_001] {
            let mut state = len as u32;
            let row: Vec<f32> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                    if state >> 30 == 0 { (state >> 8) as f32 * 1e-6 } else { 0.0 }
                })
                .collect();
            let places: Vec<u32> = (0..len as u32).filter(|&at| row[at as usize] > 0.0).collect();
            let terms: Vec<f32> = places.iter().map(|&at| row[at as usize]).collect();
            let whole = SparseRow { len, places: Places::From(0) };
            let listed = SparseRow { len, places: Places::At(&places) };
            assert_eq!(whole.softmax_sum(&row), listed.softmax_sum(&terms), "{len}");
            assert_eq!(whole.sum(&row), listed.sum(&terms), "{len}");
            let last = row.iter().take_while(|&&it| it == 0.0).count();
            let late = SparseRow { len, places: Places::From(last) };
            assert_eq!(whole.softmax_sum(&row), late.softmax_sum(&row[last..]), "{len}");
        }
    }

    #[test]
    fn exponentials_are_close() {
        for at in 0..20_000 {
            let x = at as f32 * -0.0055;
            let exact = f64::from(x).exp();
            for y in [exp(x), exp_nearest(x)] {
                let error = (f64::from(y) - exact).abs();
                assert!(error <= exact * 1.2e-7 + 1.5e-45, "e^{x} = {exact}, not {y}");
            }
        }
        assert_eq!((exp(f32::NEG_INFINITY), exp_nearest(f32::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!((exp(0.0), exp_nearest(0.0)), (1.0, 1.0));
    }
}
