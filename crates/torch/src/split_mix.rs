//! SplitMix64: noise, derived seeds, and a seed that differs from run to run.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 2^64 over the golden ratio, the step of the state.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The SplitMix64 generator (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014): small, fast, the same on every platform, and not torch's.
///
/// ```
/// use mlxgk_torch::SplitMix64;
///
/// let mut rng = SplitMix64::new(1_234_567);
/// assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
/// assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The generator with this state; every state is a good one.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        Self::mix(self.0)
    }

    /// A number in `[0, 1)` with 53 bits.
    pub const fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A standard normal number, from two uniform ones (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    /// The output function: a bijection after which neighbouring inputs have nothing in common.
    /// `mix(seed ^ use)` and the like derive seeds.
    pub const fn mix(z: u64) -> u64 {
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A seed that differs from call to call and from run to run, from the randomness that the
/// operating system gives to std's hash maps. It is not meant for secrets.
pub fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_the_moments_of_a_normal_distribution() {
        let mut rng = SplitMix64::new(3);
        let numbers: Vec<f64> = (0..100_000).map(|_| rng.normal()).collect();
        let mean = |power: i32| numbers.iter().map(|it| it.powi(power)).sum::<f64>() / 1e5;
        for (power, expected, within) in
            [(1, 0.0, 0.02), (2, 1.0, 0.03), (3, 0.0, 0.1), (4, 3.0, 0.2)]
        {
            assert!((mean(power) - expected).abs() < within, "moment {power}: {}", mean(power));
        }
    }

    #[test]
    fn random_seeds_differ() {
        assert_ne!(random_seed(), random_seed());
    }
}
