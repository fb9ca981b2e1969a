//! The fast generator: one number per draw, and a stream per row.

use mlxgk_torch::vector::sum;
use mlxgk_torch::{SplitMix64, random_seed};

use crate::distribution::Distribution;
use crate::generator::Generator;

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
        drawn.clear();
        while drawn.len() < count {
            let total: f64 = block_masses(distribution, drawn).sum();
            let Some(id) = at_mass(distribution, drawn, self.uniform_f64() * total) else { return };
            drawn.push(id);
        }
    }

    /// Nothing: the streams of other rows do not depend on this one.
    fn skip(&mut self, _: usize) {}
}

/// Probabilities that are added up before a draw looks at each of them.
const BLOCK: usize = 256;

/// The masses of the blocks of a distribution, without the tokens drawn before.
fn block_masses(distribution: &Distribution<'_>, drawn: &[u32]) -> impl Iterator<Item = f64> {
    distribution.probs().chunks(BLOCK).enumerate().map(move |(block, probs)| {
        let drawn = drawn.iter().filter_map(|&id| distribution.place(id));
        let drawn = drawn.filter(|place| place / BLOCK == block);
        f64::from(sum(probs))
            - drawn.map(|place| f64::from(distribution.probs()[place])).sum::<f64>()
    })
}

/// The first token at which the running mass of those not drawn before exceeds `mass`.
fn at_mass(distribution: &Distribution<'_>, drawn: &[u32], mut mass: f64) -> Option<u32> {
    let left = |&(id, prob): &(u32, f32)| prob > 0.0 && !drawn.contains(&id);
    for (block, block_mass) in block_masses(distribution, drawn).enumerate() {
        if mass >= block_mass {
            mass -= block_mass;
            continue;
        }
        let mut found = None;
        for (id, prob) in distribution.from(block * BLOCK).take(BLOCK).filter(left) {
            found = Some(id);
            mass -= f64::from(prob);
            if mass < 0.0 {
                break;
            }
        }
        if found.is_some() {
            return found;
        }
    }
    // Rounding may leave a little beyond the last token, which then is meant.
    distribution.iter().filter(left).last().map(|(id, _)| id)
}
