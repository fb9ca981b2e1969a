//! Where a running sum of probabilities crosses a mark.
//!
//! HF sorts the vocabulary, takes the softmax of the sorted scores and adds it up. Only the
//! neighbourhood of the crossing has to be sorted to find it: a histogram of masses tells which
//! one that is. How fp32 rounded torch's sum of the sorted row is estimated by [`Rounding`].
//! When the crossing is still too close to call, the whole row is sorted and summed as torch does
//! it; a few in a hundred flat rows come to that, and hardly any that a model makes.

use mlxgk_torch::{Places, SparseRow};

use crate::histogram::Histogram;
use crate::rounding::Rounding;
use crate::select::{self, Keyed};

/// Rows up to this length are sorted at once.
const SORTED_AT_ONCE: usize = 1024;

/// A row in the order of a key.
pub(crate) struct Ordered<'a, K> {
    /// The candidates' scores.
    pub(crate) scores: &'a [f32],
    /// Their weights: probabilities but for a common factor.
    pub(crate) weights: &'a [f32],
    /// The key, a function of the score.
    pub(crate) key: K,
    /// The range of keys where the crossing is expected; beyond it the search is slower.
    pub(crate) range: (f32, f32),
    /// Whether the weights rise with the key; else they fall from some key on. The banned weigh
    /// nothing, so they come first or last.
    pub(crate) rising: bool,
    /// The size of the whole row.
    pub(crate) vocab: usize,
}

/// Working space of the search.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    histogram: Histogram,
    keyed: Vec<Keyed>,
    spare: Vec<Keyed>,
    terms: Vec<f32>,
}

/// The candidate at which the running sum crosses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Crossing {
    /// How many candidates precede it.
    pub(crate) rank: usize,
    /// Its key.
    pub(crate) key: f32,
    /// Whether a candidate that precedes it has the same key.
    pub(crate) is_tied: bool,
}

impl<K: Fn(f32) -> f32 + Copy> Ordered<'_, K> {
    /// The first candidate at which the fp32 sum of torch's probabilities is at least `mark`.
    pub(crate) fn crossing(&self, mark: f32, work: &mut Work) -> Option<Crossing> {
        let long = self.scores.len() > SORTED_AT_ONCE;
        long.then(|| self.search(mark, work)).flatten().or_else(|| self.sort(mark, work))
    }

    /// The crossing by sorting all.
    fn sort(&self, mark: f32, work: &mut Work) -> Option<Crossing> {
        let Work { keyed, spare, terms, .. } = work;
        let candidates = self.scores.iter().zip(self.weights);
        keyed.clear();
        keyed.extend(candidates.map(|(&it, weight)| Keyed::new((self.key)(it), weight.to_bits())));
        select::sort(keyed, spare);
        terms.clear();
        terms.extend(keyed.iter().map(|it| f32::from_bits(it.value())));

        let before = if self.rising { self.vocab - terms.len() } else { 0 };
        let row = SparseRow { len: self.vocab, places: Places::From(before) };
        let scale = 1.0 / row.softmax_sum(terms);
        let mut mass = 0.0;
        let rank = terms.iter().position(|term| {
            mass += f64::from(term * scale);
            mass as f32 >= mark
        })?;
        let key = keyed[rank].key();
        Some(Crossing { rank, key, is_tied: rank > 0 && keyed[rank - 1].key() == key })
    }

    /// The crossing by the histogram; `None` where rounding might move it.
    fn search(&self, mark: f32, work: &mut Work) -> Option<Crossing> {
        let total =
            work.histogram.fill(self.scores, self.weights, self.key, self.range, self.rising);
        let rounding = Rounding::new(&work.histogram, total, self.rising);
        self.look(mark, total, rounding.unknown(), work).or_else(|| {
            let total = total + rounding.of(&work.histogram, self.weights, &mut work.terms);
            self.look(mark, total, rounding.remaining(), work)
        })
    }

    /// The crossing, given torch's sum of the weights; `None` where `doubt` about it is too much.
    fn look(&self, mark: f32, total: f64, doubt: f64, work: &mut Work) -> Option<Crossing> {
        // The reciprocal, the products and the folding of the lanes round as well.
        const FEW_ROUNDINGS: f64 = 8.0 / (1 << 24) as f64;
        let doubt = f64::from(mark) * (doubt + total * FEW_ROUNDINGS);
        // What rounds to the mark in fp32 reaches it.
        let least = (f64::from(mark) + f64::from(mark.next_down())) / 2.0 * total;
        let (bucket, mut rank, mut mass) = work.histogram.bucket_at(least)?;
        let places = work.histogram.places_in(bucket);
        work.keyed.clear();
        work.keyed.extend(places.map(|at| Keyed::new((self.key)(self.scores[at]), at as u32)));
        work.keyed.sort_unstable();
        let mut last = None;
        for it in &work.keyed {
            let (key, before) = (it.key(), mass);
            mass += f64::from(self.weights[it.value() as usize]);
            if mass >= least {
                let clear = mass - least > doubt && least - before > doubt;
                // Equal keys share a bucket.
                return clear.then_some(Crossing { rank, key, is_tied: last == Some(key) });
            }
            (last, rank) = (Some(key), rank + 1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::Generator;
    use mlxgk_torch::exp_each;

    /// Where the histogram answers, it answers as sorting does, also on rows so long and flat that
    /// torch's rounding moves one cut in ten.
    #[test]
    fn search_agrees_with_sorting() {
        let mut rng = crate::FastRng::new(1, 0);
        let mut work = Work::default();
        for (n, spread, rows, least_answers) in [(3000, 8.0, 40, 120), (300_000, 0.5, 8, 10)] {
            let mut answers = 0;
            for row in 0..rows {
                let scores: Vec<f32> =
                    (0..n).map(|_| (rng.uniform() + rng.uniform() - 2.0) * spread).collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut weights = vec![0.0; n];
                exp_each(&scores, max, &mut weights);
                let (rising, centre) = (row % 2 == 0, max - spread / 3.0);
                let key = move |score: f32| if rising { score } else { (score - centre).abs() };
                let range = if rising { (max - 24.0, max) } else { (0.0, 24.0) };
                let vocab = n + 11;
                let row = Ordered { scores: &scores, weights: &weights, key, range, rising, vocab };
                for mark in [0.2, 0.5, 0.9, 0.999] {
                    if let Some(found) = row.search(mark, &mut work) {
                        assert_eq!(Some(found), row.sort(mark, &mut work), "{n} to {mark}");
                        answers += 1;
                    }
                }
            }
            assert!(answers > least_answers, "only {answers} answers for {n}");
        }
    }
}
