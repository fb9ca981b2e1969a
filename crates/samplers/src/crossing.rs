//! Where a running sum of probabilities crosses a mark.
//!
//! HF sorts the vocabulary, takes the softmax of the sorted scores and adds it up. Only the
//! neighbourhood of the crossing has to be sorted to find it: a histogram of masses tells which
//! one that is. What it cannot tell is how fp32 rounded torch's sum of the sorted row. So when the
//! crossing is too close to call, the whole row is sorted and summed as torch does it. That
//! happens for a few in a hundred of very flat rows, and for hardly any that a model makes.

use crate::select::{self, Keyed};
use crate::torch_math::{Places, Row};

/// Rows up to this length are sorted at once.
const SORTED_AT_ONCE: usize = 1024;

/// Buckets of the histogram.
const BUCKETS: usize = 2048;

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

/// How much weight and how many candidates fall into each bucket of keys.
#[derive(Debug, Clone, Default)]
struct Histogram {
    /// The bucket of every candidate.
    buckets: Vec<u16>,
    /// Weight and number per bucket, side by side to be added in one instruction.
    contents: Vec<[[f64; 2]; BUCKETS]>,
}

/// The candidate at which the running sum crosses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Crossing {
    /// How many candidates precede it.
    pub(crate) rank: usize,
    /// Its key.
    pub(crate) key: f32,
    /// Its place in the list; candidates with the same key come in the order of theirs.
    pub(crate) place: usize,
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
        let row = Row { len: self.vocab, places: Places::From(before) };
        let scale = 1.0 / row.softmax_sum(terms);
        let mut mass = 0.0;
        let rank = terms.iter().position(|term| {
            mass += f64::from(term * scale);
            mass as f32 >= mark
        })?;
        let key = keyed[rank].key();
        let equals_before = rank - keyed.partition_point(|it| it.key() < key);
        let mut places = (0..self.scores.len()).filter(|&at| (self.key)(self.scores[at]) == key);
        Some(Crossing { rank, key, place: places.nth(equals_before)? })
    }

    /// The crossing by the histogram; `None` where rounding might move it.
    fn search(&self, mark: f32, work: &mut Work) -> Option<Crossing> {
        let total = work.histogram.fill(self);
        // What rounds to the mark in fp32 reaches it.
        let least = (f64::from(mark) + f64::from(mark.next_down())) / 2.0 * total;
        let doubt = least * work.histogram.doubt(total, self.rising);
        let (bucket, mut rank, mut mass) = work.histogram.bucket_at(least)?;

        let places = work.histogram.places_in(bucket, self.scores.len());
        work.keyed.clear();
        work.keyed.extend(places.map(|at| Keyed::new((self.key)(self.scores[at]), at as u32)));
        work.keyed.sort_unstable();
        for it in &work.keyed {
            let (place, before) = (it.value() as usize, mass);
            mass += f64::from(self.weights[place]);
            if mass >= least {
                let clear = mass - least > doubt && least - before > doubt;
                return clear.then_some(Crossing { rank, key: it.key(), place });
            }
            rank += 1;
        }
        None
    }
}

impl Histogram {
    /// Counts and weighs a row's candidates by bucket; returns the weight of all.
    fn fill<K: Fn(f32) -> f32 + Copy>(&mut self, row: &Ordered<'_, K>) -> f64 {
        let (low, high) = row.range;
        let scale = (BUCKETS - 1) as f32 / (high - low);
        if self.buckets.len() < row.scores.len() {
            self.buckets.resize(row.scores.len(), 0);
        }
        let (buckets, scores, key) = (self.buckets.as_mut_slice(), row.scores, row.key);
        pulp::Arch::new().dispatch(
            #[inline(always)]
            move || {
                for (bucket, score) in buckets.iter_mut().zip(scores) {
                    let at = (key(*score) - low) * scale;
                    // Keys beyond the range fall into the outer buckets.
                    let at = if at > 0.0 { at } else { 0.0 };
                    let at = if at < (BUCKETS - 1) as f32 { at } else { (BUCKETS - 1) as f32 };
                    // The whole part of a float beyond 2^23 is its low bits.
                    *bucket = (at + 8_388_608.0).to_bits() as u16;
                }
            },
        );
        // Neighbours go to histograms of their own, so that no addition waits for the last one.
        const APART: usize = 4;
        self.contents.clear();
        self.contents.resize(APART, [[0.0; 2]; BUCKETS]);
        for (place, (&bucket, &weight)) in self.buckets.iter().zip(row.weights).enumerate() {
            let it = &mut self.contents[place % APART][usize::from(bucket) % BUCKETS];
            *it = [it[0] + f64::from(weight), it[1] + 1.0];
        }
        let (first, others) = self.contents.split_at_mut(1);
        for other in others {
            for (sum, part) in first[0].iter_mut().zip(other) {
                *sum = [sum[0] + part[0], sum[1] + part[1]];
            }
        }
        first[0].iter().map(|it| it[0]).sum()
    }

    /// Weight and number of the candidates in each bucket.
    fn contents(&self) -> impl Iterator<Item = (f64, f64)> {
        self.contents.iter().take(1).flatten().map(|&[mass, count]| (mass, count))
    }

    /// The bucket in which the running mass reaches `least`, and the count and mass before it.
    fn bucket_at(&self, least: f64) -> Option<(usize, usize, f64)> {
        let (mut count, mut mass) = (0, 0.0);
        for (bucket, (it, n)) in self.contents().enumerate() {
            if mass + it >= least {
                return Some((bucket, count, mass));
            }
            mass += it;
            count += n as usize;
        }
        None
    }

    /// The places of a bucket's candidates, among the first `len`.
    fn places_in(&self, bucket: usize, len: usize) -> impl Iterator<Item = usize> {
        let bucket = bucket as u16;
        let blocks = self.buckets[..len].chunks(64).enumerate();
        // Few blocks have one at all, and comparing a block takes a few instructions.
        let blocks = blocks
            .filter(move |(_, block)| block.iter().fold(false, |any, &it| any | (it == bucket)));
        blocks.flat_map(move |(at, block)| {
            let places = block.iter().enumerate().filter(move |&(_, &it)| it == bucket);
            places.map(move |(place, _)| at * 64 + place)
        })
    }

    /// By which share torch's fp32 sum of the ordered row may miss the true one.
    ///
    /// Each of its additions rounds by up to 2^-24 of a lane's running sum: a sixteenth of the
    /// row's, and up to the largest weight so far. Where the terms are large against that, the
    /// errors are random, with a variance of a third of the bound's square, and six deviations of
    /// their sum are allowed for. Where they are not, the terms may be lost altogether. The last
    /// term is for the rounding of the reciprocal and the products.
    fn doubt(&self, total: f64, rising: bool) -> f64 {
        const ULP: f64 = 1.0 / (1 << 24) as f64;
        let (mut running, mut variance, mut lost) = (0.0, 0.0, 0.0);
        for (mass, count) in self.contents() {
            let mass = mass / total;
            running += mass;
            let mean = mass / count.max(1.0);
            // The highest weight is 1, before the division by the total.
            let largest = if rising { mean } else { running.min(1.0 / total) };
            let step = ULP * (running / 16.0 + largest);
            if mean > 16.0 * step {
                variance += count * step * step / 3.0;
            } else {
                lost += mass.min(count * step);
            }
        }
        6.0 * variance.sqrt() + lost + 4.0 * ULP
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::Generator;
    use crate::torch_math::exp_each;

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
                let mut weights = Vec::new();
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
