//! The highest of many scores, without sorting them all.
//!
//! Beams meet exact ties: beams that are out of the running have scores so low that fp32 rounds
//! what their tokens add away, and banned tokens are all minus infinity. So the tie order of
//! `torch.topk` is kept. It is that of `std::partial_sort` in libstdc++: a heap of the first `k`
//! scores, the lowest on top, which every higher score replaces. (torch does so where there are at
//! least 64 times as many scores as it is asked for; ties in shorter lists fall differently.)

/// Scores that share one comparison with the lowest of the best.
const BLOCK: usize = 64;

/// The `k` highest of the scores offered.
#[derive(Debug, Clone)]
pub(crate) struct TopK {
    k: usize,
    /// A heap, once it holds `k` entries, with the lowest on top.
    heap: Vec<Entry>,
    /// Scores offered so far.
    offered: usize,
}

/// A score and its place among those offered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Entry {
    pub(crate) score: f32,
    pub(crate) place: usize,
}

impl TopK {
    pub(crate) fn new(k: usize) -> Self {
        Self { k, heap: Vec::with_capacity(k), offered: 0 }
    }

    /// Offers each of `scores`, with `plus` added to it. None is NaN.
    pub(crate) fn offer(&mut self, scores: &[f32], plus: f32) {
        let first = (self.k - self.heap.len()).min(scores.len());
        let (head, rest) = scores.split_at(first);
        for &score in head {
            self.heap.push(Entry { score: score + plus, place: self.offered });
            self.offered += 1;
        }
        if !head.is_empty() && self.heap.len() == self.k {
            self.make_heap();
        }
        for block in rest.chunks(BLOCK) {
            let highest = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Adding rounds, but never changes an order, so most blocks are passed over at once.
            if highest + plus > self.heap[0].score {
                for (at, &score) in block.iter().enumerate() {
                    let score = score + plus;
                    if score > self.heap[0].score {
                        self.sink(0, self.k, Entry { score, place: self.offered + at });
                    }
                }
            }
            self.offered += block.len();
        }
    }

    /// The highest scores, best first; fewer than `k` where fewer were offered.
    pub(crate) fn finish(mut self) -> Vec<Entry> {
        if self.heap.len() < self.k {
            self.make_heap();
        }
        for end in (1..self.heap.len()).rev() {
            let last = self.heap[end];
            self.heap[end] = self.heap[0];
            self.sink(0, end, last);
        }
        self.heap
    }

    fn make_heap(&mut self) {
        let len = self.heap.len();
        for at in (0..len / 2).rev() {
            self.sink(at, len, self.heap[at]);
        }
    }

    /// Puts `entry` into the heap of the first `len` entries, in place of the one at `top`: the
    /// hole left there is moved down to a leaf, and the entry up again from it.
    fn sink(&mut self, top: usize, len: usize, entry: Entry) {
        let heap = &mut self.heap;
        let mut hole = top;
        loop {
            let right = 2 * hole + 2;
            let child = match right {
                _ if right < len && heap[right].score <= heap[right - 1].score => right,
                _ if right <= len => right - 1,
                _ => break,
            };
            heap[hole] = heap[child];
            hole = child;
        }
        while hole > top {
            let parent = (hole - 1) / 2;
            if heap[parent].score <= entry.score {
                break;
            }
            heap[hole] = heap[parent];
            hole = parent;
        }
        heap[hole] = entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(k: usize, scores: &[f32], rows: usize) -> Vec<Entry> {
        let mut best = TopK::new(k);
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
