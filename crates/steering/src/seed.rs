//! Seeds of their own for draws that have one seed in common.

use mlxgk_torch::SplitMix64;

/// The seed of use number `index` of a seed: draws for different purposes, from one seed, share
/// nothing.
pub fn derive_seed(seed: u64, index: u64) -> u64 {
    SplitMix64::mix(seed ^ index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
