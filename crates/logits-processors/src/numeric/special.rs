//! Functions that the standard library lacks, or has only one value at a time.

use std::f32::consts::LOG2_E;
use std::f64::consts::PI;

/// `e^x` in fp32, for `x <= 0`, within two units in the last place; below -87.3 it is 0.
///
/// Unlike the standard library's it has no branch and no call, so a loop over it is vectorised. It
/// writes `x` as `n ln 2 + r` with `|r| <= ln 2 / 2`, sums Taylor's series for `e^r`, and puts `n`
/// into the exponent's bits.
pub(crate) fn exp(x: f32) -> f32 {
    // The upper part of ln 2 has few bits, so that its product with `n` is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 leaves no bits after the point: it rounds.
    const ROUND: f32 = 12_582_912.0;
    const SMALLEST: f32 = -87.336_54;

    let bounded = if x < SMALLEST { SMALLEST } else { x };
    let n = (bounded * LOG2_E + ROUND) - ROUND;
    let r = (bounded - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r * r + r + 1.0;
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < SMALLEST { 0.0 } else { series * power }
}

/// The complementary error function in fp64, to some 1e-13 relative.
pub(crate) fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.0 {
        // erf(x) = 2/sqrt(pi) e^-x^2 * (x + 2x^3/3 + 4x^5/15 + ...), which has no cancellation.
        let (mut term, mut sum, mut k) = (x, x, 0.0);
        while term > sum * 1e-17 {
            k += 1.0;
            term *= x * x / (k + 0.5);
            sum += term;
        }
        return 1.0 - 2.0 / PI.sqrt() * (-x * x).exp() * sum;
    }
    // The continued fraction e^-x^2 / sqrt(pi) / (x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ...)))).
    let tail = (1..=120).rev().fold(x, |tail, k| x + f64::from(k) / 2.0 / tail);
    (-x * x).exp() / PI.sqrt() / tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for step in 0..2_000_000 {
            let x = -87.3 * (step as f32 / 2_000_000.0);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    /// The values are those of C's `erfc`.
    #[test]
    fn erfc_at_known_points() {
        let known = [
            (0.0, 1.0),
            (0.5, 0.4795001221869535),
            (1.0, 0.15729920705028513),
            (1.99, 0.004888586800383003),
            (2.0, 0.004677734981047265),
            (3.0, 2.2090496998585438e-05),
            (5.0, 1.5374597944280351e-12),
            (-1.0, 1.842700792949715),
        ];
        for (x, expected) in known {
            let got = erfc(x);
            assert!((got / expected - 1.0).abs() < 1e-12, "erfc({x}) = {got:e}, not {expected:e}");
        }
    }
}
