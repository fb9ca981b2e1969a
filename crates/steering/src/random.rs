//! Random numbers that are the same everywhere: seeds of their own, and normal numbers.

/// The seed of use number `index` of a seed: what draws for different purposes, but from one seed,
/// shares nothing (SplitMix64's mixing step).
pub fn derive_seed(seed: u64, index: u64) -> u64 {
    mix(seed ^ index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// A standard normal number: Box and Muller's method over SplitMix64.
pub(crate) fn normal(state: &mut u64) -> f64 {
    let mut uniform = || {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (mix(*state) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * uniform()).cos()
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
