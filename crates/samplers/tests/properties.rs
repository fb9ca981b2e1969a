//! What every warper promises, on random rows.

#![allow(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_samplers::{
    EpsilonCutoff, EtaCutoff, MinP, SamplerChain, SamplerState, Temperature, TopH, TopK, TopNSigma,
    TopP, TorchRng, Typical, Warper, WarperConfig,
};
use proptest::prelude::*;

/// Rows with some tokens banned; the long ones are where nothing is sorted.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![4 => -8.0f32..8.0, 1 => Just(f32::NEG_INFINITY)];
    let row = prop_oneof![
        prop::collection::vec(score.clone(), 1..40),
        prop::collection::vec(score, 1500..9000),
    ];
    row.prop_filter("a token must be left", |row| row.iter().any(|&it| it > f32::NEG_INFINITY))
}

fn config() -> impl Strategy<Value = WarperConfig> {
    let share = || prop::option::weighted(0.3, 0.01f64..0.99);
    (
        (prop::option::of(0.2f64..3.0), share(), prop::option::weighted(0.4, 1usize..200)),
        (share(), share(), share(), share(), share()),
        1usize..4,
    )
        .prop_map(
            |((temperature, top_h, top_k), (top_p, min_p, typical_p, epsilon, eta), n)| {
                WarperConfig {
                    min_tokens_to_keep: n,
                    temperature,
                    top_h,
                    top_k,
                    top_p,
                    min_p,
                    typical_p,
                    epsilon_cutoff: epsilon,
                    eta_cutoff: eta,
                    ..WarperConfig::default()
                }
            },
        )
}

/// A chain's warpers as processors of whole rows.
fn processors(chain: &SamplerChain) -> Vec<Box<dyn LogitsProcessor>> {
    let processor = |warper: &Warper| -> Box<dyn LogitsProcessor> {
        match warper {
            Warper::Temperature(it) => Box::new(*it),
            Warper::TopH(it) => Box::new(*it),
            Warper::TopK(it) => Box::new(*it),
            Warper::TopP(it) => Box::new(*it),
            Warper::MinP(it) => Box::new(*it),
            Warper::Typical(it) => Box::new(*it),
            Warper::Epsilon(it) => Box::new(*it),
            Warper::Eta(it) => Box::new(*it),
            other => panic!("{other:?} is not in HF's order"),
        }
    };
    chain.warpers().iter().map(processor).collect()
}

fn process(processor: &dyn LogitsProcessor, row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    processor.process(&Context::new(&[], 0), &mut row).unwrap();
    row
}

fn allowed(row: &[f32]) -> usize {
    row.iter().filter(|&&score| score > f32::NEG_INFINITY).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The fused chain and the warpers one by one leave the same bits, and again the second time.
    #[test]
    fn fused_and_one_by_one_agree(row in row(), config in config()) {
        let chain = config.chain().unwrap();
        let mut sampler = chain.sampler();
        let expected = processors(&chain).iter().fold(row.clone(), |row, it| process(it.as_ref(), &row));
        for _ in 0..2 {
            let mut fused = row.clone();
            sampler.warp(&mut fused, &SamplerState::default(), &mut TorchRng::new(0)).unwrap();
            prop_assert_eq!(&fused, &expected);
        }
    }

    #[test]
    fn warpers_only_cut(row in row(), share in 0.01f64..0.99, k in 1usize..300, n in 1usize..6) {
        let monotone: Vec<Box<dyn LogitsProcessor>> = vec![
            Box::new(TopK::new(k).unwrap().min_tokens_to_keep(n).unwrap()),
            Box::new(TopP::new(share).unwrap().min_tokens_to_keep(n).unwrap()),
            Box::new(MinP::new(share).unwrap().min_tokens_to_keep(n).unwrap()),
            Box::new(EpsilonCutoff::new(share).unwrap().min_tokens_to_keep(n).unwrap()),
            Box::new(EtaCutoff::new(share).unwrap().min_tokens_to_keep(n).unwrap()),
        ];
        let typical = Typical::new(share).unwrap().min_tokens_to_keep(n).unwrap();
        let (top_h, top_n_sigma) = (TopH::new(share).unwrap(), TopNSigma::new(share).unwrap());
        let free: [(&dyn LogitsProcessor, usize); 3] = [(&typical, n), (&top_h, 1), (&top_n_sigma, 1)];
        let all = monotone.iter().map(|it| (it.as_ref(), n)).chain(free);
        for (warper, least) in all {
            let after = process(warper, &row);
            for (before, after) in row.iter().zip(&after) {
                prop_assert!(after == before || *after == f32::NEG_INFINITY, "{}", warper.name());
            }
            prop_assert!(allowed(&after) >= least.min(allowed(&row)), "{}", warper.name());
            if warper.name() != "TypicalLogitsWarper" {
                let lowest = after.iter().filter(|&&it| it > f32::NEG_INFINITY).fold(f32::MAX, |a, &b| a.min(b));
                let cut = row.iter().zip(&after).filter(|(_, after)| **after == f32::NEG_INFINITY);
                let highest = cut.map(|(before, _)| *before).fold(f32::NEG_INFINITY, f32::max);
                prop_assert!(highest <= lowest, "{}: {highest} is cut, {lowest} kept", warper.name());
            }
        }
    }

    /// Temperature keeps the order and divides exactly.
    #[test]
    fn temperature_divides(row in row(), t in 0.05f64..20.0) {
        let after = process(&Temperature::new(t).unwrap(), &row);
        for (before, after) in row.iter().zip(after) {
            prop_assert_eq!(before / t as f32, after);
        }
    }
}
