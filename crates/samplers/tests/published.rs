//! Numbers llama.cpp and mlx-lm publish for the samplers that are theirs
//! (`tests/test-sampling.cpp` and `tests/test_sample_utils.py` of those projects).

#![allow(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use mlxgk_samplers::{
    DynamicTemperature, Generator, Order, Sampler, SamplerChain, SamplerState, TopNSigma, TorchRng,
    Warper, WarperConfig, Xtc,
};

fn sampler(warper: Warper) -> Sampler {
    SamplerChain::new(vec![warper]).unwrap().sampler()
}

/// The probabilities after one warper, banned tokens having none.
fn after(warper: Warper, probs: &[f32]) -> Vec<f32> {
    let scores: Vec<f32> = probs.iter().map(|p| p.ln()).collect();
    let (mut sampler, state) = (sampler(warper), SamplerState::default());
    let distribution = sampler.distribution(&scores, &state, &mut TorchRng::new(0)).unwrap();
    (0..probs.len() as u32).map(|id| distribution.probability(id)).collect()
}

#[track_caller]
fn check(warper: Warper, probs: &[f32], expected: &[f32]) {
    let actual = after(warper, probs);
    let close = actual.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close && actual.len() == expected.len(), "{actual:?}, published {expected:?}");
}

/// The given weights as probabilities.
fn normalised(weights: &[f32]) -> Vec<f32> {
    weights.iter().map(|weight| weight / weights.iter().sum::<f32>()).collect()
}

#[test]
fn llama_cpp_xtc() {
    let probs = [0.4, 0.3, 0.2, 0.1];
    for (threshold, left) in [
        (0.09, [0.0, 0.0, 0.0, 0.1]),
        (0.19, [0.0, 0.0, 0.2, 0.1]),
        (0.29, [0.0, 0.3, 0.2, 0.1]),
        (0.39, [0.4, 0.3, 0.2, 0.1]),
    ] {
        check(Warper::Xtc(Xtc::new(0.99, threshold).unwrap()), &probs, &normalised(&left));
    }
}

#[test]
fn llama_cpp_top_n_sigma() {
    let probs = [0.1, 0.2, 0.3, 0.4];
    let warper = |n| Warper::TopNSigma(TopNSigma::new(n).unwrap());
    check(warper(1.0), &probs, &[0.0, 0.0, 0.428571, 0.571429]);
    check(warper(3.0), &probs, &probs);
    // In llama.cpp, 0 turns it off.
    let off = WarperConfig { top_n_sigma: Some(0.0), ..WarperConfig::default() };
    assert!(off.chain().unwrap().warpers().is_empty());
}

#[test]
fn llama_cpp_extended_temperature() {
    let probs = [0.1, 0.2, 0.3, 0.4];
    let warper = DynamicTemperature::new(1.0, 0.0, 1.0).unwrap();
    check(Warper::DynamicTemperature(warper), &probs, &probs);
}

#[test]
fn mlx_lm_xtc() {
    let probs = [0.4, 0.3, 0.15, 0.15];
    let xtc = |probability, threshold| Xtc::new(probability, threshold).unwrap();
    check(Warper::Xtc(xtc(1.0, 0.2)), &probs, &[0.0, 0.5, 0.25, 0.25]);
    check(Warper::Xtc(xtc(1.0, 0.1)), &probs, &[0.0, 0.0, 0.5, 0.5]);
    let spared = xtc(1.0, 0.1).spare([0]);
    check(Warper::Xtc(spared), &probs, &normalised(&[0.4, 0.0, 0.15, 0.15]));
    check(Warper::Xtc(xtc(0.0, 0.1)), &probs, &probs);
}

/// XTC acts in the given share of the steps.
#[test]
fn xtc_flips_a_coin() {
    let mut sampler = sampler(Warper::Xtc(Xtc::new(0.3, 0.1).unwrap()));
    let state = SamplerState::default();
    let mut rng = mlxgk_samplers::FastRng::new(1, 0);
    let scores = [2.0, 1.0, 0.5];
    let acted = (0..10_000)
        .filter(|_| sampler.distribution(&scores, &state, &mut rng).unwrap().probability(0) == 0.0)
        .count();
    assert!((2850..3150).contains(&acted), "{acted}");
}

#[test]
fn orders() {
    let config = |order| WarperConfig {
        order,
        temperature: Some(0.5),
        top_k: Some(4),
        top_p: Some(0.9),
        min_p: Some(0.1),
        typical_p: Some(0.8),
        xtc_probability: Some(0.5),
        top_n_sigma: Some(1.0),
        ..WarperConfig::default()
    };
    let names = |order| -> Vec<String> {
        let chain = config(order).chain().unwrap();
        let name = |warper| format!("{warper:?}").split('(').next().unwrap_or_default().to_owned();
        chain.warpers().iter().map(name).collect()
    };
    assert_eq!(
        names(Order::Hf),
        ["Temperature", "TopK", "TopP", "MinP", "Typical", "TopNSigma", "Xtc"]
    );
    assert_eq!(
        names(Order::MlxLm),
        ["TopP", "MinP", "Typical", "TopNSigma", "Xtc", "TopK", "Temperature"]
    );
    assert_eq!(
        names(Order::LlamaCpp),
        ["TopNSigma", "TopK", "Typical", "TopP", "MinP", "Xtc", "Temperature"]
    );
}

/// Temperature before or after top-p: the two orders keep different sets.
#[test]
fn order_matters() {
    let scores = [3.0, 2.0, 1.0, 0.0];
    let kept = |order| {
        let config = WarperConfig {
            order,
            temperature: Some(2.0),
            top_p: Some(0.9),
            ..WarperConfig::default()
        };
        let mut row = scores;
        let mut sampler = config.chain().unwrap().sampler();
        sampler.warp(&mut row, &SamplerState::default(), &mut TorchRng::new(0)).unwrap();
        row.iter().filter(|score| **score > f32::NEG_INFINITY).count()
    };
    assert_eq!((kept(Order::Hf), kept(Order::MlxLm)), (4, 3));
}

/// Mirostat's arithmetic, written out for one step.
#[test]
fn mirostat_one_step() {
    let probs = [0.5f32, 0.25, 0.125, 0.0625, 0.0625];
    let scores: Vec<f32> = probs.iter().map(|p| p.ln()).collect();
    // mu starts at 2 tau = 2.2 bits: of surprises 1, 2, 3, 4 and 4, two are allowed.
    let mirostat = mlxgk_samplers::Mirostat::v2(1.1, 0.5).unwrap();
    let (mut sampler, mut state) = (sampler(Warper::Mirostat(mirostat)), SamplerState::default());
    let mut rng = TorchRng::new(3);
    let token = sampler.sample(&scores, &mut state, &mut rng).unwrap();
    let p = [2.0f64 / 3.0, 1.0 / 3.0][token as usize];
    let expected = 2.2 - 0.5 * (-p.log2() - 1.1);
    let mu = state.mu().unwrap();
    assert!((mu - expected).abs() < 1e-6, "{mu} {expected}");

    // Zipf's law itself, with exponent 2 over 1000 tokens: k solves the paper's equation.
    let zipf: Vec<f32> = (1..=1000).map(|rank| -2.0 * (rank as f32).ln()).collect();
    let mirostat = mlxgk_samplers::Mirostat::v1(3.0, 0.1, 100).unwrap();
    let (mut sampler, state) = (self::sampler(Warper::Mirostat(mirostat)), SamplerState::default());
    let kept = sampler.distribution(&zipf, &state, &mut rng).unwrap().iter().count();
    let k = (64.0 / (1.0 - 1.0 / 1000.0f64)).sqrt();
    assert_eq!(kept, k as usize);
}

/// A token that the cut had removed has no surprise to learn from: it comes from elsewhere, as where
/// a watermark bends what the warpers left.
#[test]
fn mirostat_learns_nothing_from_a_token_that_was_cut() {
    let mut scores = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
    let mut sampler = sampler(Warper::Mirostat(mlxgk_samplers::Mirostat::v2(0.6, 0.5).unwrap()));
    let mut state = SamplerState::default();
    sampler.warp(&mut scores, &state, &mut TorchRng::new(0)).unwrap();
    assert_eq!(scores[1..], [f32::NEG_INFINITY; 3]);
    for cut in [3, 9] {
        sampler.observe(cut, &mut state);
        assert_eq!(state, SamplerState::default());
    }
    sampler.observe(0, &mut state);
    assert_eq!(state.mu(), Some(1.2 + 0.5 * 0.6));
}

/// Over many draws the mean surprise settles at the target.
#[test]
fn mirostat_holds_the_surprise() {
    let mut noise = mlxgk_samplers::FastRng::new(9, 9);
    let scores: Vec<f32> = (0..2000).map(|_| noise.uniform() * 12.0).collect();
    for mirostat in [
        mlxgk_samplers::Mirostat::v1(4.0, 0.1, 100).unwrap(),
        mlxgk_samplers::Mirostat::v2(4.0, 0.1).unwrap(),
    ] {
        let mut sampler = sampler(Warper::Mirostat(mirostat));
        let mut state = SamplerState::default();
        let mut rng = mlxgk_samplers::FastRng::new(2, 0);
        let mut surprise = 0.0;
        for _ in 0..3000 {
            let before = state;
            let token = sampler.sample(&scores, &mut state, &mut rng).unwrap();
            let probs = sampler.distribution(&scores, &before, &mut rng.clone()).unwrap();
            surprise -= f64::from(probs.probability(token)).log2();
        }
        let mean = surprise / 3000.0;
        assert!((mean - 4.0).abs() < 0.1, "{mirostat:?}: {mean}");
    }
}
