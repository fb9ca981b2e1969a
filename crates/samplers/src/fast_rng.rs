//! The fast generator: one number per draw, and a stream per row.

use mlxgk_torch::{SplitMix64, random_seed};

use crate::distribution::Distribution;
use crate::generator::Generator;
use crate::inversion::invert;

/// A fast generator with a stream for every row (xoshiro256++: Blackman and Vigna, "Scrambled
/// linear pseudorandom number generators", 2021).
///
/// The stream is a function of the seed and the row alone, and the same on every platform.
///
/// ```
/// use mlxgk_samplers::{FastRng, Generator};
///
/// let mut rng = FastRng::new(7, 2);
/// let mut again = rng.clone();
/// assert_eq!(rng.uniform(), again.uniform());
/// assert_ne!(rng, FastRng::new(7, 3));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct FastRng([u64; 4]);

impl FastRng {
    /// The stream of a row under a seed.
    pub fn new(seed: u64, row: u64) -> Self {
        // Scrambling the seed first keeps row 1 of seed 0 apart from row 0 of seed 1.
        let mut state = SplitMix64::new(SplitMix64::mix(seed).wrapping_add(row));
        Self(std::array::from_fn(|_| state.next_u64()))
    }

    /// A stream with a [random seed](random_seed).
    pub fn unseeded() -> Self {
        Self::new(random_seed(), 0)
    }

    fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let next = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        next
    }

    /// A number in `[0, 1)` with 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Generator for FastRng {
    fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1 << 24) as f32
    }

    /// Inverts the cumulative distribution, with one number per token drawn.
    fn draw(&mut self, distribution: &Distribution<'_>, count: usize, drawn: &mut Vec<u32>) {
        invert(distribution, count, drawn, || self.uniform_f64());
    }

    fn quantile(&mut self) -> Option<f64> {
        Some(self.uniform_f64())
    }

    /// Nothing: the streams of other rows do not depend on this one.
    fn skip(&mut self, _: usize) {}
}
