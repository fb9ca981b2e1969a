//! Finding the few that count among many scores, without sorting them all.

use std::ops::Range;

use mlxgk_torch::vector;

/// A sorting key and a value, in one integer that sorts by the key, then by the value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Keyed(u64);

impl Keyed {
    pub(crate) fn new(key: f32, value: u32) -> Self {
        // Adding zero makes -0.0 the 0.0 it equals.
        Self(u64::from(sortable(key + 0.0)) << 32 | u64::from(value))
    }

    pub(crate) fn key(self) -> f32 {
        unsortable((self.0 >> 32) as u32)
    }

    pub(crate) fn value(self) -> u32 {
        self.0 as u32
    }
}

/// Sorts by key; a long list by the key's digits, of which three of 11 bits are enough.
pub(crate) fn sort(items: &mut Vec<Keyed>, spare: &mut Vec<Keyed>) {
    const DIGIT: u32 = 11;
    if items.len() < 1 << (DIGIT + 1) {
        items.sort_unstable();
        return;
    }
    spare.resize(items.len(), Keyed::default());
    for shift in [32, 32 + DIGIT, 32 + 2 * DIGIT] {
        let digit = |it: Keyed| (it.0 >> shift) as usize % (1 << DIGIT);
        let mut ends = [0u32; 1 << DIGIT];
        for &it in items.iter() {
            ends[digit(it)] += 1;
        }
        let mut end = 0;
        for it in &mut ends {
            end += std::mem::replace(it, end);
        }
        for &it in items.iter() {
            let next = &mut ends[digit(it)];
            spare[*next as usize] = it;
            *next += 1;
        }
        std::mem::swap(items, spare);
    }
}

/// Maps floats to integers that compare the same way.
fn sortable(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The inverse of [`sortable`].
fn unsortable(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// The highest score, NaN if there is one, and a range that holds its first place.
pub(crate) fn highest_block(scores: &[f32]) -> (f32, Range<usize>) {
    let (mut best, mut best_at, mut at) = (f32::NEG_INFINITY, 0, 0);
    let highest = fold_blocks(scores, |max| {
        if max > best {
            (best, best_at) = (max, at);
        }
        at += 1;
    });
    let start = best_at * BLOCK;
    (highest, start..scores.len().min(start + BLOCK))
}

/// Scores that share one maximum in [`Blocks`].
const BLOCK: usize = 64;

/// A row's blocks by their maxima, in which the `k` highest scores are soon found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blocks {
    maxima: Vec<f32>,
    spare: Vec<f32>,
}

impl Blocks {
    /// Takes the maxima of a row and returns the highest of them; NaN if there is one.
    pub(crate) fn survey(&mut self, scores: &[f32]) -> f32 {
        self.maxima.clear();
        fold_blocks(scores, |max| self.maxima.push(max))
    }

    /// A score that at least `k` scores reach, and few more than that; of the row last surveyed.
    ///
    /// `k` blocks hold a score of at least the `k`-th highest maximum.
    pub(crate) fn bound(&mut self, k: usize) -> f32 {
        if self.maxima.len() < k {
            return f32::NEG_INFINITY;
        }
        self.spare.clear();
        self.spare.extend_from_slice(&self.maxima);
        nth_highest(&mut self.spare, k)
    }

    /// Calls `visit` with the places and scores of at least `least`, in order.
    pub(crate) fn each_from(&self, scores: &[f32], least: f32, mut visit: impl FnMut(usize, f32)) {
        for ((at, block), max) in scores.chunks(BLOCK).enumerate().zip(&self.maxima) {
            if *max >= least {
                for (place, &score) in block.iter().enumerate() {
                    if score >= least {
                        visit(at * BLOCK + place, score);
                    }
                }
            }
        }
    }

    /// The `k`-th highest score of a list; the lowest for a larger `k`.
    pub(crate) fn kth_highest(&mut self, scores: &[f32], k: usize) -> f32 {
        let k = k.min(scores.len());
        let bound = if scores.len() >= BLOCK * BLOCK {
            self.survey(scores);
            self.bound(k)
        } else {
            f32::NEG_INFINITY
        };
        let mut spare = std::mem::take(&mut self.spare);
        spare.clear();
        if bound == f32::NEG_INFINITY {
            spare.extend_from_slice(scores);
        } else {
            self.each_from(scores, bound, |_, score| spare.push(score));
        }
        let kth = nth_highest(&mut spare, k);
        self.spare = spare;
        kth
    }
}

/// Calls `visit` with the maximum of every block; returns the highest, or NaN if there is one.
fn fold_blocks(scores: &[f32], mut visit: impl FnMut(f32)) -> f32 {
    const AT_ONCE: usize = 128;
    let (blocks, rest) = scores.as_chunks::<BLOCK>();
    let mut last = [f32::NEG_INFINITY; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    let last = if rest.is_empty() { &[][..] } else { std::slice::from_ref(&last) };
    let (mut highest, mut nan) = (f32::NEG_INFINITY, false);
    for blocks in blocks.chunks(AT_ONCE).chain([last]) {
        let mut maxima = [0.0; AT_ONCE];
        vector::map(blocks, &mut maxima, block_max);
        for &max in &maxima[..blocks.len()] {
            highest = if max > highest { max } else { highest };
            nan |= max.is_nan();
            visit(max);
        }
    }
    if nan { f32::NAN } else { highest }
}

/// The highest of a block, or NaN if there is one.
#[inline(always)]
fn block_max(block: &[f32; BLOCK]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nan = [0; LANES];
    for chunk in block.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let score = chunk[lane];
            lanes[lane] = if score > lanes[lane] { score } else { lanes[lane] };
            nan[lane] |= u32::from(score.is_nan());
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            let (a, b) = (lanes[lane], lanes[lane + half]);
            lanes[lane] = if a > b { a } else { b };
            nan[lane] |= nan[lane + half];
        }
        half /= 2;
    }
    if nan[0] == 0 { lanes[0] } else { f32::NAN }
}

/// The `n`-th highest of a list that may be reordered; `n` counts from 1.
pub(crate) fn nth_highest(scores: &mut [f32], n: usize) -> f32 {
    *scores.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
}

/// The least score that divided by `temperature` gives what `score` gives.
///
/// Division rounds, so scores just below may meet `score` after it, and count as tied with it.
pub(crate) fn least_with_quotient(score: f32, temperature: f32) -> f32 {
    let quotient = score / temperature;
    let (mut below, mut at) = (sortable(f32::NEG_INFINITY), sortable(score));
    if f32::NEG_INFINITY >= quotient {
        return f32::NEG_INFINITY;
    }
    while at - below > 1 {
        let middle = below + (at - below) / 2;
        if unsortable(middle) / temperature >= quotient { at = middle } else { below = middle }
    }
    unsortable(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(n: usize) -> Vec<f32> {
        let mut state = n as u32;
        let mut next = || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            ((state >> 8) as i32 - (1 << 23)) as f32 / 4096.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn kth_highest_is_that_of_the_sorted_list() {
        for n in [1, 5, 64, 4096, 5000, 20_000] {
            let scores = scores(n);
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for k in [1, 2, 50, 200, 3000, n] {
                let expected = sorted[k.min(n) - 1];
                assert_eq!(Blocks::default().kth_highest(&scores, k), expected, "{k} of {n}");
            }
        }
    }

    #[test]
    fn long_lists_sort_like_short_ones() {
        let keyed = |n: usize| scores(n).into_iter().zip(0..).map(|(key, at)| Keyed::new(key, at));
        for n in [10, 100_000] {
            let (mut sorted, mut expected): (Vec<_>, Vec<_>) =
                (keyed(n).collect(), keyed(n).collect());
            sort(&mut sorted, &mut Vec::new());
            expected.sort_unstable();
            assert!(sorted == expected);
        }
    }

    #[test]
    fn ties_after_division_are_found() {
        for (score, temperature) in
            [(1.0, 3.0), (-7.3, 0.7), (0.0, 1e30), (12.25, 1.0), (-1e-3, 1e38)]
        {
            let least = least_with_quotient(score, temperature);
            assert!(least <= score && least / temperature == score / temperature);
            assert!(least.next_down() / temperature < score / temperature);
        }
    }
}
