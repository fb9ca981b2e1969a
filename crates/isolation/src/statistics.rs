//! Paired comparisons over examples.

use mlxgk_torch::SplitMix64;

/// Up to here all signs are tried.
const EXACT: usize = 12;
/// Random signs, and resamples, beyond.
const DRAWS: usize = 10_000;

/// How far two conditions are apart over the same examples.
///
/// ```
/// use mlxgk_isolation::paired;
///
/// // Five examples under two conditions: how often chance alone gives such a difference.
/// let found = paired(&[0.4, 0.5, 0.3, 0.6, 0.5], &[0.2, 0.2, 0.1, 0.3, 0.3], 7).unwrap();
/// assert!((found.mean_difference - 0.24).abs() < 1e-12);
/// assert_eq!(found.p, 2.0 / 32.0); // only with all signs as they are, or all turned
/// assert!(found.interval.0 > 0.0 && found.interval.1 < 0.3 + 1e-9);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Paired {
    /// Examples that have both values.
    pub n: usize,
    /// The mean of first less second.
    pub mean_difference: f64,
    /// Where 95 % of the means of resampled examples lie (percentile bootstrap, 10,000 draws).
    pub interval: (f64, f64),
    /// How often a mean at least as far from 0 comes about when each difference's sign is left to chance: over
    /// all signs up to 12 examples, else over 10,000 draws, themselves counted as one.
    pub p: f64,
    /// Cohen's d of the differences: their mean over their standard deviation (n - 1). `None` where they are
    /// all the same.
    pub effect_size: Option<f64>,
}

/// Compares two conditions' values, pair by pair; `None` for fewer than two pairs.
///
/// ```
/// use mlxgk_isolation::paired;
///
/// let found = paired(&[3.0, 4.0, 6.0], &[2.0, 2.0, 3.0], 7).unwrap();
/// assert_eq!((found.n, found.mean_difference), (3, 2.0));
/// // Of the eight ways to set three signs, all plus and all minus are as far out.
/// assert_eq!(found.p, 0.25);
/// assert_eq!(found.effect_size, Some(2.0));
/// ```
///
/// # Panics
/// When there are not as many of one as of the other.
pub fn paired(first: &[f64], second: &[f64], seed: u64) -> Option<Paired> {
    assert_eq!(first.len(), second.len(), "values come in pairs");
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    let n = differences.len();
    if n < 2 {
        return None;
    }
    let mean = differences.iter().sum::<f64>() / n as f64;
    let squares: f64 = differences.iter().map(|it| (it - mean).powi(2)).sum();
    let deviation = (squares / (n - 1) as f64).sqrt();
    // What rounding may leave of differences that are all the same.
    let scale = differences.iter().fold(0.0_f64, |most, it| most.max(it.abs()));
    let varies = deviation > 1e-12 * scale;
    let mut rng = SplitMix64::new(seed);
    let p = sign_test(&differences, &mut rng);
    let interval = bootstrap(&differences, &mut rng);
    let effect_size = varies.then(|| mean / deviation);
    Some(Paired { n, mean_difference: mean, interval, p, effect_size })
}

fn sign_test(differences: &[f64], rng: &mut SplitMix64) -> f64 {
    let n = differences.len();
    let observed = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order may differ in their last bits.
    let least = observed * (1.0 - 1e-12);
    let signed = |bits: &dyn Fn(usize) -> bool| {
        let signed = differences.iter().enumerate();
        signed.map(|(at, it)| if bits(at) { *it } else { -it }).sum::<f64>().abs() >= least
    };
    if n <= EXACT {
        let count = 1_usize << n;
        let hits = (0..count).filter(|signs| signed(&|at| signs >> at & 1 == 1)).count();
        return hits as f64 / count as f64;
    }
    let mut hits = 1;
    for _ in 0..DRAWS {
        let words: Vec<u64> = (0..n.div_ceil(64)).map(|_| rng.next_u64()).collect();
        hits += usize::from(signed(&|at| words[at / 64] >> (at % 64) & 1 == 1));
    }
    hits as f64 / (DRAWS + 1) as f64
}

fn bootstrap(differences: &[f64], rng: &mut SplitMix64) -> (f64, f64) {
    let n = differences.len();
    let mut draw = || {
        let sum: f64 = (0..n).map(|_| differences[below(rng, n)]).sum();
        sum / n as f64
    };
    let mut means: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    means.sort_by(f64::total_cmp);
    let tail = DRAWS / 40;
    (means[tail], means[DRAWS - 1 - tail])
}

/// A number below `count`.
pub(crate) fn below(rng: &mut SplitMix64, count: usize) -> usize {
    ((rng.uniform() * count as f64) as usize).min(count - 1)
}
