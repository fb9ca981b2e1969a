//! Scores of any bits in rows that are long enough for the paths beside sorting: a chain of warpers
//! refuses them, or leaves at least one token, lets none in that was banned, and draws one it left.
//!
//! The first bytes choose the row's length and the warpers, the rest is repeated to fill the row.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxgk_samplers::{FastRng, SamplerChain, SamplerState, TorchRng, WarperConfig};

fuzz_target!(|data: &[u8]| {
    let [length, which, strength, rest @ ..] = data else { return };
    let bits: Vec<f32> = rest.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
    if bits.is_empty() {
        return;
    }
    // Rows up to 1,024 are sorted, longer ones are not.
    let length = 1_000 + usize::from(*length) * 33;
    let scores: Vec<f32> = bits.iter().copied().cycle().take(length).collect();
    let Ok(chain) = chain(*which, f64::from(*strength) / 255.0) else { return };
    let mut warped = scores.clone();
    let (mut sampler, mut state) = (chain.sampler(), SamplerState::default());
    if sampler.warp(&mut warped, &state, &mut TorchRng::new(1)).is_err() {
        return;
    }
    assert!(!warped.iter().any(|it| it.is_nan()), "{chain:?}");
    for (at, (before, after)) in scores.iter().zip(&warped).enumerate() {
        assert!(*before > f32::NEG_INFINITY || *after == f32::NEG_INFINITY, "token {at} came back");
    }
    if let Ok(token) = sampler.sample(&scores, &mut state, &mut FastRng::new(1, 0)) {
        assert!(warped[token as usize] > f32::NEG_INFINITY, "{token} was cut and drawn");
    }
});

fn chain(which: u8, strength: f64) -> mlxgk_samplers::Result<SamplerChain> {
    let with = |bit: u8, value: f64| (which & (1 << bit) != 0).then_some(value);
    let config = WarperConfig {
        temperature: with(0, 0.1 + 2.0 * strength),
        top_k: with(1, 1.0 + 200.0 * strength).map(|it| it as usize),
        top_p: with(2, strength),
        min_p: with(3, strength),
        typical_p: with(4, strength),
        epsilon_cutoff: with(5, strength / 10.0),
        eta_cutoff: with(6, strength / 10.0),
        top_h: with(7, strength),
        ..WarperConfig::default()
    };
    config.chain()
}
