//! Finding the few highest of many scores without sorting them.

use crate::greedy;

/// A candidate's sorting key and its place in the list, in one integer that sorts as they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ranked(u64);

impl Ranked {
    pub(crate) fn new(key: f32, place: usize) -> Self {
        Self(u64::from(sortable(key)) << 32 | place as u64)
    }

    /// The candidate's place in the list.
    pub(crate) fn place(&self) -> usize {
        self.0 as u32 as usize
    }
}

/// Maps floats to integers that compare the same way; `-0.0` and `0.0` are told apart.
fn sortable(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The inverse of [`sortable`].
fn unsortable(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// Scores that share one maximum in [`kth_highest`].
const BLOCK: usize = 64;

/// The `k`-th highest score (the lowest for a larger `k`), with `spare` as working space.
///
/// The `k`-th highest of the blocks' maxima bounds it from below, so only the few blocks that
/// reach the bound are looked at twice.
pub(crate) fn kth_highest(scores: &[f32], k: usize, spare: &mut Vec<f32>) -> f32 {
    let k = k.clamp(1, scores.len());
    spare.clear();
    if scores.len() / BLOCK < 4 * k {
        spare.extend_from_slice(scores);
        return nth_highest(spare, k);
    }
    greedy::block_maxima::<BLOCK>(scores, spare);
    let blocks = spare.len();
    spare.extend_from_within(..);
    let bound = nth_highest(&mut spare[blocks..], k);
    spare.truncate(blocks);
    for at in 0..blocks {
        if spare[at] >= bound {
            let end = scores.len().min((at + 1) * BLOCK);
            let block = &scores[at * BLOCK..end];
            spare.extend(block.iter().filter(|&&score| score >= bound));
        }
    }
    nth_highest(&mut spare[blocks..], k)
}

fn nth_highest(scores: &mut [f32], n: usize) -> f32 {
    *scores.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
}

/// The least score that divided by `temperature` gives what `score` gives.
///
/// Division rounds, so scores just below may meet `score` after it, and count as tied with it.
pub(crate) fn least_with_quotient(score: f32, temperature: f32) -> f32 {
    let quotient = score / temperature;
    let (mut below, mut at) = (sortable(f32::NEG_INFINITY), sortable(score));
    if unsortable(below) / temperature >= quotient {
        return f32::NEG_INFINITY;
    }
    while at - below > 1 {
        let middle = below + (at - below) / 2;
        if unsortable(middle) / temperature >= quotient { at = middle } else { below = middle }
    }
    unsortable(at)
}
