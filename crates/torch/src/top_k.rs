//! `torch.topk`, without sorting all.
//!
//! Beams meet exact ties: beams that are out of the running have scores so low that fp32 rounds
//! what their tokens add away, and banned tokens are all minus infinity. So the order in which
//! torch leaves equals is kept. Where it is asked for at most one in 64 it keeps a heap
//! (`std::partial_sort`), which here most scores pass without being looked at; else it divides and
//! sorts ([`select_first`]).

use crate::order::{make_heap, select_first, sink, sort_heap};

/// Scores that share one comparison with the lowest of the best.
const BLOCK: usize = 64;

/// The `k` highest of the scores offered, in the order of `torch.topk` on the CPU.
///
/// ```
/// use mlxgk_torch::TopK;
///
/// // torch.topk(torch.zeros(1000), 8).indices
/// let mut best = TopK::new(8, 1000);
/// best.offer(&[0.0; 1000], 0.0);
/// let places: Vec<usize> = best.finish().into_iter().map(|it| it.place).collect();
/// assert_eq!(places, [7, 4, 1, 3, 5, 0, 2, 6]);
/// ```
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    /// Whether torch would keep a heap.
    keeps_heap: bool,
    /// A heap, once it holds `k` entries, with the lowest on top; or all entries.
    entries: Vec<Ranked>,
    /// Scores offered so far.
    offered: usize,
}

/// A score and its place among those offered.
///
/// See the example of [`TopK`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// The score.
    pub score: f32,
    /// How many scores were offered before it.
    pub place: usize,
}

/// Whether the first belongs before the second.
fn precedes(a: &Ranked, b: &Ranked) -> bool {
    a.score > b.score
}

impl TopK {
    /// For the `k` highest, or all where there are fewer, of the `total` scores that will be offered.
    pub fn new(k: usize, total: usize) -> Self {
        let k = k.min(total);
        Self { k, keeps_heap: 64 * k <= total, entries: Vec::with_capacity(k), offered: 0 }
    }

    /// Offers each of `scores`, with `plus` added to it. None is NaN.
    pub fn offer(&mut self, scores: &[f32], plus: f32) {
        let listed = if self.keeps_heap { self.k - self.entries.len() } else { scores.len() };
        let (head, rest) = scores.split_at(listed.min(scores.len()));
        let numbered = head.iter().zip(self.offered..);
        self.entries.extend(numbered.map(|(it, place)| Ranked { score: it + plus, place }));
        self.offered += head.len();
        if self.keeps_heap && !head.is_empty() && self.entries.len() == self.k {
            make_heap(&mut self.entries, precedes);
        }
        for block in rest.chunks(BLOCK) {
            let highest = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Adding rounds, but never changes an order, so most blocks are passed over at once.
            if self.entries.first().is_some_and(|lowest| highest + plus > lowest.score) {
                for (&score, place) in block.iter().zip(self.offered..) {
                    let item = Ranked { score: score + plus, place };
                    if precedes(&item, &self.entries[0]) {
                        sink(&mut self.entries, 0, item, precedes);
                    }
                }
            }
            self.offered += block.len();
        }
    }

    /// The highest scores, best first.
    pub fn finish(mut self) -> Vec<Ranked> {
        if self.keeps_heap {
            sort_heap(&mut self.entries, precedes);
        } else if self.k > 0 {
            let count = self.k.min(self.entries.len());
            select_first(&mut self.entries, count, precedes);
            self.entries.truncate(count);
        }
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(k: usize, scores: &[f32], rows: usize) -> Vec<Ranked> {
        let mut best = TopK::new(k, scores.len());
        scores.chunks(scores.len().div_ceil(rows)).for_each(|row| best.offer(row, 0.0));
        best.finish()
    }

    #[test]
    fn the_highest_come_out_in_order() {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            (state >> 8) as f32
        };
        for (len, k) in [(1, 1), (5, 8), (64, 1), (700, 6), (1000, 64), (3, 3)] {
            let scores: Vec<f32> = (0..len).map(|_| next()).collect();
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted.truncate(k);
            for rows in [1, 3] {
                let best = top(k, &scores, rows);
                assert!(best.iter().all(|it| scores[it.place] == it.score));
                let best: Vec<f32> = best.iter().map(|it| it.score).collect();
                assert_eq!(best, sorted, "{k} of {len}");
            }
        }
    }

    #[test]
    fn ties_fall_as_in_torch() {
        let places =
            |k, scores: &[f32]| top(k, scores, 1).iter().map(|it| it.place).collect::<Vec<_>>();
        // torch.topk(torch.zeros(1000), 8).indices, and with ones at 3, 500 and 999
        let mut scores = [0.0; 1000];
        assert_eq!(places(8, &scores), [7, 4, 1, 3, 5, 0, 2, 6]);
        for at in [3, 500, 999] {
            scores[at] = 1.0;
        }
        assert_eq!(places(8, &scores), [3, 999, 500, 7, 1, 4, 5, 0]);
    }
}
