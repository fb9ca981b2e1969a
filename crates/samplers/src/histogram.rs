//! Candidates counted and weighed by a key.

use mlxgk_torch::vector::{self, room};

/// Buckets of a [`Histogram`].
pub(crate) const BUCKETS: usize = 2048;

/// How much weight and how many candidates fall into each bucket of keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    /// The bucket of every candidate, in the first `len` places.
    buckets: Vec<u16>,
    len: usize,
    /// Weight and number per bucket, side by side to be added in one instruction.
    contents: Vec<[[f64; 2]; BUCKETS]>,
}

impl Histogram {
    /// Counts and weighs candidates by their key, the light ones being at the low end of the range
    /// where the weights rise with the key, else at the high end; returns the weight of all.
    pub(crate) fn fill(
        &mut self,
        scores: &[f32],
        weights: &[f32],
        key: impl Fn(f32) -> f32 + Copy,
        (low, high): (f32, f32),
        rising: bool,
    ) -> f64 {
        // Some keys tell how far the light ones reach, which is often less far.
        let sample = scores.iter().step_by((scores.len() / 1024).max(1)).map(|&score| key(score));
        let sample = sample.filter(|key| key.is_finite());
        let (low, high) = if rising {
            (low.max(sample.fold(high, f32::min)), high)
        } else {
            (low, high.min(sample.fold(low, f32::max)))
        };
        let scale = (BUCKETS - 1) as f32 / (high - low).max(f32::MIN_POSITIVE);
        self.len = scores.len();
        vector::map(scores, room(&mut self.buckets, self.len), move |&score| {
            let at = (key(score) - low) * scale;
            // Keys beyond the range fall into the outer buckets.
            let at = if at > 0.0 { at } else { 0.0 };
            let at = if at < (BUCKETS - 1) as f32 { at } else { (BUCKETS - 1) as f32 };
            // The whole part of a float beyond 2^23 is its low bits.
            (at + 8_388_608.0).to_bits() as u16
        });
        // Neighbours go to histograms of their own, so that no addition waits for the last one.
        const APART: usize = 4;
        self.contents.clear();
        self.contents.resize(APART, [[0.0; 2]; BUCKETS]);
        for (place, (&bucket, &weight)) in self.buckets.iter().zip(weights).enumerate() {
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

    /// The bucket of every candidate.
    pub(crate) fn buckets(&self) -> &[u16] {
        &self.buckets[..self.len]
    }

    /// Weight and number of the candidates in each bucket.
    pub(crate) fn contents(&self) -> impl Iterator<Item = (f64, f64)> {
        self.contents.iter().take(1).flatten().map(|&[mass, count]| (mass, count))
    }

    /// The bucket in which the running mass reaches `least`, and the count and mass before it.
    pub(crate) fn bucket_at(&self, least: f64) -> Option<(usize, usize, f64)> {
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

    /// The places of a bucket's candidates.
    pub(crate) fn places_in(&self, bucket: usize) -> impl Iterator<Item = usize> {
        let bucket = bucket as u16;
        let blocks = self.buckets().chunks(64).enumerate();
        // Few blocks have one at all, and comparing a block takes a few instructions.
        let blocks = blocks
            .filter(move |(_, block)| block.iter().fold(false, |any, &it| any | (it == bucket)));
        blocks.flat_map(move |(at, block)| {
            let places = block.iter().enumerate().filter(move |&(_, &it)| it == bucket);
            places.map(move |(place, _)| at * 64 + place)
        })
    }
}
