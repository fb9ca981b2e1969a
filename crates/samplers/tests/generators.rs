//! The generators: fairness, independence, and what a finished row does.

use mlxgk_samplers::{
    ErrorKind, FastRng, FromRand, Generator, Sampler, SamplerState, Streams, TorchRng,
    WarperConfig, argmax, greedy,
};

fn normal_scores(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = FastRng::new(seed, 0);
    (0..n).map(|_| (0..12).map(|_| rng.uniform()).sum::<f32>() - 6.0).collect()
}

/// Draws come in the proportions of their probabilities, by Pearson's test.
#[test]
fn fast_draws_are_fair() {
    for vocab in [3, 40, 700] {
        let scores = normal_scores(vocab, 1);
        let (mut sampler, mut state) = (Sampler::default(), SamplerState::default());
        let mut rng = FastRng::new(5, 0);
        let draws = 100 * vocab;
        let mut counts = vec![0.0; vocab];
        for _ in 0..draws {
            counts[sampler.sample(&scores, &mut state, &mut rng).unwrap() as usize] += 1.0;
        }
        let probs = sampler.distribution(&scores, &state, &mut rng).unwrap();
        let statistic: f64 = probs
            .iter()
            .map(|(id, p)| {
                let expected = f64::from(p) * draws as f64;
                (counts[id as usize] - expected).powi(2) / expected
            })
            .sum();
        // Five deviations of the statistic beyond its mean.
        let freedom = vocab as f64 - 1.0;
        assert!(statistic < freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0, "{vocab}: {statistic}");
    }
}

/// A generator of `rand` draws as its numbers say, and unseeded ones differ.
#[test]
fn generators_of_rand_and_unseeded_ones_draw() {
    /// 0, then one half, and so on.
    struct Halves(u64);

    impl rand_core::TryRng for Halves {
        type Error = std::convert::Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
            self.try_next_u64().map(|it| (it >> 32) as u32)
        }

        fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
            self.0 ^= 1 << 63;
            Ok(self.0 ^ 1 << 63)
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
            bytes.fill(0);
            Ok(())
        }
    }

    let (mut sampler, mut state) = (Sampler::default(), SamplerState::default());
    let mut rng = FromRand(Halves(0));
    let scores = [0.4f32, 0.2, 0.4].map(f32::ln);
    let draws = [0; 4].map(|_| sampler.sample(&scores, &mut state, &mut rng).unwrap());
    assert_eq!(draws, [0, 1, 0, 1]);
    assert_eq!(sampler.sample_n(&scores, 3, &state, &mut rng).unwrap().len(), 3);
    assert_eq!((rng.uniform(), rng.uniform()), (0.5, 0.0));
    assert_ne!(FastRng::unseeded(), FastRng::unseeded());
    assert_ne!(TorchRng::unseeded(), TorchRng::unseeded());
}

/// Several draws are different tokens, and the first is distributed as a single draw.
#[test]
fn fast_draws_several_without_replacement() {
    let scores = [0.0, 1.0, 2.0, f32::NEG_INFINITY, 0.5];
    let (mut sampler, mut state) = (Sampler::default(), SamplerState::default());
    for seed in 0..500 {
        let mut drawn =
            sampler.sample_n(&scores, 3, &state, &mut FastRng::new(seed, 0)).unwrap().to_vec();
        let alone = sampler.sample(&scores, &mut state, &mut FastRng::new(seed, 0)).unwrap();
        assert_eq!(drawn[0], alone);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 3);
        assert!(!drawn.contains(&3));
    }
    // No more than are allowed.
    assert_eq!(sampler.sample_n(&scores, 9, &state, &mut FastRng::new(0, 0)).unwrap().len(), 4);
    assert_eq!(sampler.sample_n(&scores, 9, &state, &mut TorchRng::new(0)).unwrap().len(), 4);
}

/// A row's tokens are the same whatever its neighbours do.
#[test]
fn fast_rows_are_independent() {
    let scores = normal_scores(200, 2);
    let (mut sampler, mut state) = (Sampler::default(), SamplerState::default());
    let mut tokens = |streams: &mut Streams, rows: &[usize]| -> Vec<u32> {
        let mut tokens = Vec::new();
        for _ in 0..30 {
            for &row in rows {
                let token = sampler.sample(&scores, &mut state, streams.row(row)).unwrap();
                if row == 1 {
                    tokens.push(token);
                }
            }
        }
        tokens
    };
    let alone = tokens(&mut Streams::fast(7), &[1]);
    assert_eq!(alone, tokens(&mut Streams::fast(7), &[0, 1, 2, 3]));
    assert_ne!(alone, tokens(&mut Streams::fast(8), &[1]));
    assert_ne!(FastRng::new(0, 1), FastRng::new(1, 0));
}

/// The stream is pinned, so that a seed gives the same text after an update.
#[test]
fn fast_stream_is_pinned() {
    let mut rng = FastRng::new(42, 3);
    let drawn: Vec<u32> = (0..4).map(|_| (rng.uniform() * 1e6) as u32).collect();
    assert_eq!(drawn, PINNED);
}

/// From the published definitions of SplitMix64 and xoshiro256++.
const PINNED: [u32; 4] = [238_984, 47_953, 363_207, 362_793];

/// Skipping moves torch's stream exactly as drawing does.
#[test]
fn torch_rows_skip() {
    let scores = normal_scores(333, 3);
    let usual = WarperConfig { top_k: Some(20), top_p: Some(0.8), ..WarperConfig::default() };
    let mut state = SamplerState::default();
    for mut sampler in [Sampler::default(), usual.chain().unwrap().sampler()] {
        let (mut drawing, mut skipping) = (TorchRng::new(1), TorchRng::new(1));
        sampler.sample(&scores, &mut state, &mut drawing).unwrap();
        skipping.skip(scores.len());
        assert_eq!(drawing, skipping);
        sampler.sample_n(&scores, 5, &state, &mut drawing).unwrap();
        skipping.skip(scores.len());
        assert_eq!(drawing, skipping);
    }
}

#[test]
fn undrawable_rows_are_errors() {
    let none = WarperConfig::default;
    let mut state = SamplerState::default();
    let mut samplers = [
        none(),
        WarperConfig { top_k: Some(2), ..none() },
        WarperConfig { temperature: Some(1e-30), ..none() },
        WarperConfig { typical_p: Some(0.5), ..none() },
    ]
    .map(|it| it.chain().unwrap().sampler());
    for row in [
        vec![],
        vec![f32::NEG_INFINITY; 100],
        vec![0.0, f32::NAN, 1.0],
        vec![0.0, f32::INFINITY],
        vec![f32::NEG_INFINITY, -f32::NAN],
    ] {
        for sampler in &mut samplers {
            let error = sampler.sample(&row, &mut state, &mut FastRng::new(0, 0)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoTokenAllowed, "{error}");
        }
    }
    let overflow =
        samplers[2].sample(&[1e10, 0.0], &mut state, &mut FastRng::new(0, 0)).unwrap_err();
    assert_eq!(overflow.to_string(), "no token can be drawn: the highest score is inf");
}

#[test]
fn greedy_is_argmax() {
    for n in [1, 7, 64, 65, 1000] {
        let mut scores = normal_scores(n, 4);
        let best = (0..n).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
        assert_eq!((greedy(&scores), argmax(&scores)), (Ok(best as u32), Some(best as u32)));
        scores[n / 2] = f32::NAN;
        assert_eq!(argmax(&scores), Some((n / 2) as u32));
        assert_eq!(greedy(&scores).unwrap_err().kind(), ErrorKind::NoTokenAllowed);
    }
    let mut tied = vec![1.0; 200];
    tied[0] = 0.0;
    assert_eq!(greedy(&tied), Ok(1));
}

/// torch answers 0 for a row that is all banned; nothing may be said then.
#[test]
fn nothing_to_choose_is_an_error() {
    let banned = [f32::NEG_INFINITY; 70];
    assert_eq!((argmax(&[]), argmax(&banned)), (None, Some(0)));
    for row in [&[][..], &banned] {
        assert_eq!(greedy(row).unwrap_err().kind(), ErrorKind::NoTokenAllowed);
    }
}

#[test]
fn bad_parameters_name_themselves() {
    let none = WarperConfig::default;
    for (name, config) in [
        ("temperature", WarperConfig { temperature: Some(0.0), ..none() }),
        ("temperature", WarperConfig { temperature: Some(-1.0), ..none() }),
        ("temperature", WarperConfig { temperature: Some(f64::NAN), ..none() }),
        ("temperature", WarperConfig { temperature: Some(1e-60), ..none() }),
        ("top_h", WarperConfig { top_h: Some(0.0), ..none() }),
        ("top_h", WarperConfig { top_h: Some(1.1), ..none() }),
        ("top_p", WarperConfig { top_p: Some(1.5), ..none() }),
        ("top_p", WarperConfig { top_p: Some(-0.1), ..none() }),
        ("top_p", WarperConfig { top_p: Some(f64::NAN), ..none() }),
        ("min_p", WarperConfig { min_p: Some(2.0), ..none() }),
        ("typical_p", WarperConfig { typical_p: Some(0.0), ..none() }),
        ("typical_p", WarperConfig { typical_p: Some(1.2), ..none() }),
        ("epsilon_cutoff", WarperConfig { epsilon_cutoff: Some(1.0), ..none() }),
        ("eta_cutoff", WarperConfig { eta_cutoff: Some(-0.1), ..none() }),
        ("top_n_sigma", WarperConfig { top_n_sigma: Some(f64::NAN), ..none() }),
        ("xtc_probability", WarperConfig { xtc_probability: Some(1.5), ..none() }),
        (
            "xtc_threshold",
            WarperConfig { xtc_probability: Some(0.5), xtc_threshold: Some(0.6), ..none() },
        ),
        ("dynatemp_range", WarperConfig { dynatemp_range: Some(-1.0), ..none() }),
        ("min_tokens_to_keep", WarperConfig { top_k: Some(5), min_tokens_to_keep: 0, ..none() }),
    ] {
        let error = config.chain().unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Parameter, Some(name)));
        assert!(error.to_string().starts_with(&format!("`{name}` must be ")), "{error}");
    }
}
