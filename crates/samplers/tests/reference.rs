//! Every warper, written out naively on whole rows in torch's order, against the fused chain: on rows
//! of up to 20,000 scores, with ties, bans and odd bit patterns.
//!
//! The arithmetic of single sums is `mlxgk-torch`'s, which the goldens compare with torch; how
//! candidates are found, cut and listed is what is checked here. So is the order in which torch sorts
//! equals; what a cut through them keeps is written at each warper.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_samplers::{
    DynamicTemperature, FastRng, Generator, Mirostat, SamplerChain, SamplerState, TopH, TopNSigma,
    Warper, WarperConfig, Xtc,
};
use mlxgk_torch::{Places, SparseRow, SplitMix64, exp, ln};
use proptest::prelude::*;

const OUT: f32 = f32::NEG_INFINITY;

fn highest(row: &[f32]) -> f32 {
    row.iter().copied().fold(OUT, f32::max)
}

/// `torch.softmax`: 16 running sums, folded in halves; of a shorter row, one.
fn softmax(row: &[f32]) -> Vec<f32> {
    let max = highest(row);
    let terms: Vec<f32> = row.iter().map(|it| exp(it - max)).collect();
    let sum = if row.len() < 16 {
        terms.iter().fold(0.0, |sum, it| sum + it)
    } else {
        let mut lanes = [0.0f32; 16];
        terms.iter().enumerate().for_each(|(at, it)| lanes[at % 16] += it);
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|at| lanes[at] += lanes[at + half]);
        }
        lanes[0]
    };
    let scale = 1.0 / sum;
    terms.iter().map(|it| it * scale).collect()
}

/// The places of a row by ascending key; among equal keys, by id.
fn sorted(row: &[f32], key: impl Fn(f32) -> f32) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(|&a, &b| key(row[a]).partial_cmp(&key(row[b])).unwrap());
    places
}

/// Running sums in double precision, each rounded.
fn cumsum(terms: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut sum = 0.0;
    let mut add = |it: f32| {
        sum += f64::from(it);
        sum as f32
    };
    terms.map(&mut add).collect()
}

fn kth_highest(row: &[f32], k: usize) -> f32 {
    let mut scores = row.to_vec();
    scores.sort_by(|a, b| b.total_cmp(a));
    scores[k.clamp(1, row.len()) - 1]
}

fn cut(row: &[f32], removed: impl Fn(usize) -> bool) -> Vec<f32> {
    row.iter().enumerate().map(|(at, &it)| if removed(at) { OUT } else { it }).collect()
}

fn temperature(row: &[f32], t: f64) -> Vec<f32> {
    row.iter().map(|it| it / t as f32).collect()
}

/// All that tie with the k-th stay.
fn top_k(row: &[f32], k: usize) -> Vec<f32> {
    let kth = kth_highest(row, k);
    cut(row, |at| row[at] < kth)
}

/// The places of a row in the order of `torch.sort` by a key.
fn torch_sorted(row: &[f32], key: impl Fn(f32) -> f32) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    mlxgk_torch::sort(&mut places, |&a, &b| key(row[a]) < key(row[b]));
    places
}

/// Among equals, those stay that torch sorts last.
fn top_p(row: &[f32], p: f64, keep: usize) -> Vec<f32> {
    let order = torch_sorted(row, |it| it);
    let probs = softmax(&order.iter().map(|&at| row[at]).collect::<Vec<_>>());
    let sums = cumsum(probs.into_iter());
    let first = sums.iter().position(|it| *it > (1.0 - p) as f32).unwrap_or(row.len());
    let first = first.min(row.len().saturating_sub(keep));
    let removed: std::collections::HashSet<_> = order[..first].iter().copied().collect();
    cut(row, |at| removed.contains(&at))
}

/// What has a probability of at least `least`, and the highest scores with all that tie with them.
fn probable(row: &[f32], least: f32, keep: usize) -> Vec<f32> {
    let (probs, kth) = (softmax(row), kth_highest(row, keep));
    cut(row, |at| probs[at] < least && row[at] < kth)
}

/// What has the share stays, and of the rest the likeliest up to `keep` of the row. Among equals at that
/// place any will do, banned ones among them; which `torch.topk` takes the goldens of ties hold.
fn assert_min_p(found: &[f32], row: &[f32], p: f64, keep: usize, what: &str) {
    let probs = softmax(row);
    let (least, kth) = (p as f32 * highest(&probs), kth_highest(&probs, keep));
    let expected = cut(row, |at| probs[at] < least && probs[at] <= kth);
    let is_free = |at: usize| probs[at] < least && probs[at] == kth;
    let mut free = 0;
    for at in 0..row.len() {
        if is_free(at) && found[at] == row[at] && row[at] > OUT {
            free += 1;
        } else {
            assert_eq!(found[at], expected[at], "{what}: token {at} of {}", row.len());
        }
    }
    let equals = (0..row.len()).filter(|at| is_free(*at)).count();
    let banned = (0..row.len()).filter(|at| is_free(*at) && row[*at] == OUT).count();
    let taken = (keep - probs.iter().filter(|it| **it > kth).count().min(keep)).min(equals);
    assert!(free <= taken && free + banned >= taken, "{what}: {free} of {taken} equals");
}

fn eta(row: &[f32], epsilon: f64, keep: usize) -> Vec<f32> {
    let (mut probs, mut terms) = (vec![0.0; row.len()], vec![0.0; row.len()]);
    let whole = SparseRow { len: row.len(), places: Places::From(0) };
    let entropy = whole.categorical(row, highest(row), &mut probs, &mut terms);
    let epsilon = epsilon as f32;
    let eta = epsilon.min(epsilon.sqrt() * f64::from(-entropy).exp() as f32);
    probable(row, eta, keep)
}

/// All that are as typical as the last stay; where they are too few, those that torch sorts first.
fn typical(row: &[f32], mass: f64, keep: usize) -> Vec<f32> {
    let max = highest(row);
    let terms: Vec<f32> = row.iter().map(|it| exp(it - max)).collect();
    let whole = SparseRow { len: row.len(), places: Places::From(0) };
    let log_sum = ln(whole.softmax_sum(&terms));
    let log_prob = |it: f32| (it - max) - log_sum;
    let entropy = whole.entropy(row, log_prob, &mut vec![0.0; row.len()]);
    let strange = |it: f32| (-log_prob(it) - entropy).abs();
    let order = torch_sorted(row, strange);
    let probs = softmax(&order.iter().map(|&at| row[at]).collect::<Vec<_>>());
    let last = cumsum(probs.into_iter()).iter().filter(|it| **it < mass as f32).count();
    let limit = strange(row[order[last.min(row.len() - 1)]]);
    let always: std::collections::HashSet<_> = order.iter().take(keep).copied().collect();
    cut(row, |at| strange(row[at]) > limit && !always.contains(&at))
}

/// Among equals, those stay that come first in torch's top.
fn top_h(row: &[f32], h: f64) -> Vec<f32> {
    let considered = row.len().min(TopH::CONSIDERED);
    let mut best = mlxgk_torch::TopK::new(considered, row.len());
    best.offer(row, 0.0);
    let order: Vec<usize> = best.finish().into_iter().map(|it| it.place).collect();
    let logits: Vec<f32> =
        order[..considered].iter().map(|&at| row[at]).filter(|it| *it > OUT).collect();
    let n = logits.len();
    let (mut probs, mut terms) = (vec![0.0; n], vec![0.0; n]);
    let list = SparseRow { len: considered, places: Places::From(0) };
    let budget = list.categorical(&logits, logits[0], &mut probs, &mut terms) * h as f32;
    let spent = cumsum(probs.iter().map(|&it| -it * ln(it)));
    let kept = spent.iter().take_while(|it| **it <= budget).count().max(1);
    let kept: std::collections::HashSet<_> = order[..kept].iter().copied().collect();
    cut(row, |at| !kept.contains(&at))
}

fn allowed(row: &[f32]) -> Vec<f64> {
    row.iter().filter(|it| **it > OUT).map(|&it| f64::from(it)).collect()
}

fn top_n_sigma(row: &[f32], n: f64) -> Vec<f32> {
    let scores = allowed(row);
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let variance = scores.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / scores.len() as f64;
    let least = f64::from(highest(row)) - n * variance.sqrt();
    cut(row, |at| f64::from(row[at]) < least)
}

fn dynamic_temperature(row: &[f32], range: f64) -> Vec<f32> {
    let n = allowed(row).len();
    if n < 2 {
        return row.to_vec();
    }
    let probs: Vec<f64> = probs_of_allowed(row)
        .into_iter()
        .map(|(_, it)| f64::from(it))
        .filter(|it| *it > 0.0)
        .collect();
    let entropy = -probs.iter().map(|it| it * it.ln()).sum::<f64>();
    let flatness = (entropy / (n as f64).ln()).clamp(0.0, 1.0);
    let low = (1.0 - range).max(0.0);
    let t = (low + (1.0 + range - low) * flatness) as f32;
    let max = highest(row);
    if (max / t).is_finite() {
        row.iter().map(|it| it / t).collect()
    } else {
        cut(row, |at| row[at] != max)
    }
}

/// Tokens that are not banned with their probabilities.
fn probs_of_allowed(row: &[f32]) -> Vec<(usize, f32)> {
    softmax(row).into_iter().enumerate().filter(|(at, _)| row[*at] > OUT).collect()
}

/// Tokens that are not banned with their probabilities, likeliest first; among equals, by id.
fn ranked(row: &[f32]) -> Vec<(usize, f32)> {
    let probs = softmax(row);
    let order = sorted(row, |it| -it);
    order.into_iter().filter(|&at| row[at] > OUT).map(|at| (at, probs[at])).collect()
}

/// Removes what is above the threshold, but the least of it and what ties with that.
fn xtc(row: &[f32], threshold: f64) -> Vec<f32> {
    let above: Vec<usize> = ranked(row)
        .into_iter()
        .take_while(|(_, prob)| *prob >= threshold as f32)
        .map(|(at, _)| at)
        .collect();
    let Some(&least) = above.last() else { return row.to_vec() };
    cut(row, |at| row[at] > row[least])
}

fn mirostat_2(row: &[f32], tau: f64) -> Vec<f32> {
    let ranked = ranked(row);
    let kept = ranked.iter().take_while(|(_, it)| -f64::from(*it).log2() <= 2.0 * tau).count();
    let kept: std::collections::HashSet<_> =
        ranked.iter().take(kept.max(1)).map(|(at, _)| *at).collect();
    cut(row, |at| !kept.contains(&at))
}

/// A row of random scores of one of several shapes, with some banned.
fn row(len: usize, seed: u64, shape: u8, banned: f64) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed);
    let mut score = || match shape {
        0 => rng.normal() as f32 * 3.0,
        // Almost flat, so that rounding decides.
        1 => rng.normal() as f32 * 0.5,
        // Quantized, so that many tie.
        2 => (rng.normal() * 4.0).round() as f32 / 2.0,
        // Zeros of both signs, denormals, and neighbours in the last bit.
        3 => match rng.next_u64() % 5 {
            0 => -0.0,
            1 => 0.0,
            2 => f32::from_bits((rng.next_u64() % 64) as u32),
            3 => -f32::from_bits((rng.next_u64() % 64) as u32),
            _ => f32::from_bits(1.5f32.to_bits() + (rng.next_u64() % 3) as u32),
        },
        // Any bits at all.
        _ => match f32::from_bits(rng.next_u64() as u32) {
            it if it.is_nan() => 0.5,
            f32::INFINITY => f32::MAX,
            it => it,
        },
    };
    let mut row: Vec<f32> = (0..len).map(|_| score()).collect();
    for it in &mut row {
        if rng.uniform() < banned {
            *it = OUT;
        }
    }
    let place = (rng.next_u64() % len as u64) as usize;
    row[place] = if row[place] == OUT { 1.0 } else { row[place] };
    row
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    let len = prop_oneof![3 => 1usize..50, 1 => 900usize..1100, 2 => 1100usize..20_000];
    let banned = prop_oneof![Just(0.0), Just(0.2), Just(0.99)];
    (len, any::<u64>(), 0u8..5, banned).prop_map(|(len, seed, shape, it)| row(len, seed, shape, it))
}

/// The same ids with the same bits, where zeros of both signs are one.
#[track_caller]
fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at]) {
        let (a, b) = (found[at], expected[at]);
        panic!("{what}: token {at} of {} scores {a:e}, naively {b:e}", found.len());
    }
}

#[allow(clippy::needless_pass_by_value, reason = "each chain is made for one call")]
fn warped(chain: SamplerChain, row: &[f32]) -> Result<Vec<f32>, String> {
    let mut warped = row.to_vec();
    let outcome =
        chain.sampler().warp(&mut warped, &SamplerState::default(), &mut FastRng::new(3, 0));
    outcome.map(|()| warped).map_err(|it| it.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// HF's, alone and in its order.
    #[test]
    fn hf_warpers(row in rows(), share in 0.01f64..0.99, k in 1usize..150, keep in 1usize..4, t in 0.3f64..3.0) {
        let config = WarperConfig { min_tokens_to_keep: keep, ..WarperConfig::default() };
        let small = share / 50.0;
        let all: [(&str, WarperConfig, Vec<f32>); 7] = [
            ("temperature", WarperConfig { temperature: Some(t), ..config.clone() }, temperature(&row, t)),
            ("top-h", WarperConfig { top_h: Some(share), ..config.clone() }, top_h(&row, share)),
            ("top-k", WarperConfig { top_k: Some(k), ..config.clone() }, top_k(&row, k.max(keep))),
            ("top-p", WarperConfig { top_p: Some(share), ..config.clone() }, top_p(&row, share, keep)),
            ("typical", WarperConfig { typical_p: Some(share), ..config.clone() }, typical(&row, share, keep)),
            ("epsilon", WarperConfig { epsilon_cutoff: Some(small), ..config.clone() }, probable(&row, small as f32, keep)),
            ("eta", WarperConfig { eta_cutoff: Some(small), ..config.clone() }, eta(&row, small, keep)),
        ];
        for (name, config, expected) in all {
            match warped(config.chain().unwrap(), &row) {
                Ok(found) => assert_same(&found, &expected, name),
                Err(error) => prop_assert!(!highest(&expected).is_finite(), "{name}: {error}"),
            }
        }
        match warped(WarperConfig { min_p: Some(share), ..config.clone() }.chain().unwrap(), &row) {
            Ok(found) => assert_min_p(&found, &row, share, keep, "min-p"),
            Err(error) => prop_assert!(!highest(&row).is_finite(), "min-p: {error}"),
        }
        let several = WarperConfig {
            temperature: Some(t), top_k: Some(k), top_p: Some(share), min_p: Some(small), ..config
        };
        let divided = temperature(&row, t);
        if highest(&divided).is_finite() {
            let before = top_p(&top_k(&divided, k.max(keep)), share, keep);
            let found = warped(several.chain().unwrap(), &row).unwrap();
            assert_min_p(&found, &before, small, keep, "a chain");
        }
    }

    /// Those of other engines.
    #[test]
    fn other_warpers(row in rows(), share in 0.01f64..0.5, range in 0.0f64..1.0, tau in 0.5f64..6.0) {
        let sigma = 4.0 * share;
        let all: [(&str, Warper, Vec<f32>); 4] = [
            ("top-n-sigma", Warper::TopNSigma(TopNSigma::new(sigma).unwrap()), top_n_sigma(&row, sigma)),
            (
                "dynamic temperature",
                Warper::DynamicTemperature(DynamicTemperature::new(1.0, range, 1.0).unwrap()),
                dynamic_temperature(&row, range),
            ),
            ("xtc", Warper::Xtc(Xtc::new(1.0, share).unwrap()), xtc(&row, share)),
            ("mirostat", Warper::Mirostat(Mirostat::v2(tau, 0.1).unwrap()), mirostat_2(&row, tau)),
        ];
        for (name, warper, expected) in all {
            let chain = SamplerChain::new(vec![warper]).unwrap();
            assert_same(&warped(chain, &row).unwrap(), &expected, name);
        }
    }

    /// A draw is one of the tokens that are left, for any generator.
    #[test]
    fn draws_are_among_what_is_left(row in rows(), share in 0.01f64..0.99, seed in any::<u64>()) {
        let config = WarperConfig { top_p: Some(share), ..WarperConfig::default() };
        let left = top_p(&row, share, 1);
        let mut sampler = config.chain().unwrap().sampler();
        let generators: [Box<dyn Generator>; 2] =
            [Box::new(FastRng::new(seed, 1)), Box::new(mlxgk_samplers::TorchRng::new(seed))];
        for mut generator in generators {
            let token = sampler.sample(&row, &mut SamplerState::default(), generator.as_mut()).unwrap();
            prop_assert!(left[token as usize] > OUT);
        }
    }
}
