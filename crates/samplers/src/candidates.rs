//! The tokens still in the running, and the working space all warpers share.
//!
//! A warper never needs the banned tokens, so once few are left, only they are kept, in a short
//! list of ids and scores. What a warper knows of the banned is how many there are: torch's sums
//! run over whole rows, and a survivor's place in the row decides into which partial sum it goes.

use std::mem;

use mlxgk_logits_processors::{Error, ErrorKind, Result};
use mlxgk_torch::vector::{self, room};
use mlxgk_torch::{Places, SparseRow, TopK, exp_each, sort};

use crate::crossing::{Crossing, Ordered, Work};
use crate::select::{Blocks, Keyed, highest_block, least_with_quotient};

/// One row's candidates, in the order of their ids.
///
/// The buffers are at least as long as the list and never shortened, since filling them costs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Candidates {
    vocab: usize,
    /// Whether every token of the row is listed, the banned ones too; then `ids` means nothing.
    whole: bool,
    len: usize,
    ids: Vec<u32>,
    scores: Vec<f32>,
    /// The highest score.
    max: f32,
    probs: Vec<f32>,
    terms: Vec<f32>,
    marks: Vec<u8>,
    ranked: Vec<Keyed>,
    blocks: Blocks,
    work: Work,
}

/// A list is made where at most one in so many tokens is left.
const SHORT: usize = 8;

impl Candidates {
    /// Takes a whole row, each score divided by `temperature`.
    ///
    /// # Errors
    /// When a score is NaN or infinitely high, or none is above `-inf`.
    pub(crate) fn load(&mut self, scores: &[f32], temperature: f32) -> Result<()> {
        self.max = self.begin(scores, temperature)?;
        self.whole = true;
        self.len = scores.len();
        vector::map(scores, room(&mut self.scores, self.len), move |score| score / temperature);
        Ok(())
    }

    /// Takes the `k` highest scores of a row and all that equal the lowest of them, each divided
    /// by `temperature`; what [`load`](Self::load) and a top-k give, in one reading.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(crate) fn load_top(&mut self, scores: &[f32], temperature: f32, k: usize) -> Result<()> {
        let max = self.begin(scores, temperature)?;
        self.whole = false;
        let bound = least_with_quotient(self.blocks.bound(k), temperature);
        self.ids.clear();
        self.scores.clear();
        // Everything but the banned is at least the lowest finite score.
        self.blocks.each_from(scores, bound.max(f32::MIN), |id, score| {
            self.ids.push(id as u32);
            self.scores.push(score);
        });
        self.len = self.scores.len();
        if self.len > k {
            let least = least_with_quotient(self.kth_highest(k), temperature);
            self.keep(move |score, _| score >= least);
        }
        for score in &mut self.scores[..self.len] {
            *score /= temperature;
        }
        self.max = max;
        Ok(())
    }

    /// Looks a row over; returns the highest score, divided by `temperature`.
    fn begin(&mut self, scores: &[f32], temperature: f32) -> Result<f32> {
        let max = self.blocks.survey(scores);
        if max == f32::NEG_INFINITY {
            let message = "every token is banned: no score is above -inf";
            return Err(Error::new(ErrorKind::NoTokenAllowed, message));
        }
        if !(max / temperature).is_finite() {
            let message =
                format!("no token can be drawn: the highest score is {}", max / temperature);
            return Err(Error::new(ErrorKind::NoTokenAllowed, message));
        }
        self.vocab = scores.len();
        Ok(max / temperature)
    }

    /// How many candidates are listed.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many tokens the row had.
    pub(crate) fn vocab(&self) -> usize {
        self.vocab
    }

    /// The candidates' ids in ascending order; `None` while all tokens are listed.
    pub(crate) fn ids(&self) -> Option<&[u32]> {
        (!self.whole).then(|| &self.ids[..self.len])
    }

    fn row(&self) -> SparseRow<'_> {
        SparseRow { len: self.vocab, places: self.ids().map_or(Places::From(0), Places::At) }
    }

    /// The candidates' scores; `-inf` for banned ones, while all tokens are listed.
    pub(crate) fn scores(&self) -> &[f32] {
        &self.scores[..self.len]
    }

    /// The highest score.
    pub(crate) fn max(&self) -> f32 {
        self.max
    }

    /// The weights or probabilities, after [`weigh`](Self::weigh) or [`softmax`](Self::softmax).
    pub(crate) fn probs(&self) -> &[f32] {
        &self.probs[..self.len]
    }

    /// The probabilities in the order [`rank`](Self::rank) found.
    pub(crate) fn ranked_probs(&self) -> impl Iterator<Item = f32> + Clone {
        self.ranked.iter().map(|it| self.probs[it.value() as usize])
    }

    /// The scores in the order [`rank`](Self::rank) found.
    pub(crate) fn ranked_scores(&self) -> impl Iterator<Item = f32> {
        self.ranked.iter().map(|it| self.scores[it.value() as usize])
    }

    /// Replaces every score; `rescale` must not change their order.
    pub(crate) fn rescale(&mut self, rescale: impl Fn(f32) -> f32) {
        self.max = rescale(self.max);
        for score in &mut self.scores[..self.len] {
            *score = rescale(*score);
        }
    }

    /// Computes the weights, which are the probabilities but for a common factor.
    pub(crate) fn weigh(&mut self) {
        let weights = room(&mut self.probs, self.len);
        exp_each(&self.scores[..self.len], self.max, weights);
    }

    /// torch's sum of the weights.
    pub(crate) fn weight(&self) -> f32 {
        self.row().softmax_sum(self.probs())
    }

    /// Computes `torch.softmax` of the row.
    pub(crate) fn softmax(&mut self) {
        self.weigh();
        let scale = 1.0 / self.weight();
        for prob in &mut self.probs[..self.len] {
            *prob *= scale;
        }
    }

    /// The entropy in nats, as `torch.distributions.Categorical` computes it.
    pub(crate) fn categorical_entropy(&mut self) -> f32 {
        let (mut probs, mut terms) = (mem::take(&mut self.probs), mem::take(&mut self.terms));
        let (to, space) = (room(&mut probs, self.len), room(&mut terms, self.len));
        let entropy = self.row().categorical(self.scores(), self.max, to, space);
        (self.probs, self.terms) = (probs, terms);
        entropy
    }

    /// The entropy in nats, as `torch.nansum` of `log p * exp(log p)` gives it.
    pub(crate) fn summed_entropy(&mut self, log_prob: impl Fn(f32) -> f32 + Copy) -> f32 {
        let mut terms = mem::take(&mut self.terms);
        let space = room(&mut terms, self.len);
        let entropy = self.row().entropy(self.scores(), log_prob, space);
        self.terms = terms;
        entropy
    }

    /// The `k`-th highest score; the lowest where there are fewer.
    pub(crate) fn kth_highest(&mut self, k: usize) -> f32 {
        self.blocks.kth_highest(&self.scores[..self.len], k)
    }

    /// Sorts the candidates by a key of their score, ascending; equal keys stay in order of id.
    pub(crate) fn rank(&mut self, key: impl Fn(f32) -> f32) {
        let keys = self.scores[..self.len].iter().map(|&score| key(score));
        self.ranked.clear();
        self.ranked.extend(keys.enumerate().map(|(at, key)| Keyed::new(key, at as u32)));
        self.ranked.sort_unstable();
    }

    /// Sorts the `n` highest candidates, and all that equal the lowest of them, the highest first.
    pub(crate) fn rank_highest(&mut self, n: usize) {
        let least = self.kth_highest(n).max(f32::MIN);
        let highest = self.scores[..self.len].iter().zip(0..).filter(|it| *it.0 >= least);
        self.ranked.clear();
        self.ranked.extend(highest.map(|(score, at)| Keyed::new(-score, at)));
        self.ranked.sort_unstable();
    }

    /// The first candidate, by ascending key, at which the sum of torch's probabilities in that
    /// order reaches `mark`; see [`Ordered`]. [`weigh`](Self::weigh) must have run.
    pub(crate) fn crossing(
        &mut self,
        key: impl Fn(f32) -> f32 + Copy,
        range: (f32, f32),
        rising: bool,
        mark: f32,
    ) -> Option<Crossing> {
        let (scores, weights) = (&self.scores[..self.len], &self.probs[..self.len]);
        let ordered = Ordered { scores, weights, key, range, rising, vocab: self.vocab };
        ordered.crossing(mark, &mut self.work)
    }

    /// Keeps the candidates whose score and probability the test accepts, and none that is banned.
    pub(crate) fn keep(&mut self, test: impl Fn(f32, f32) -> bool + Copy) {
        self.mark(0..self.len, test);
        self.sweep();
    }

    /// Keeps the candidates from a rank on, counted by ascending score from the first banned token on, in
    /// the order in which `torch.sort` leaves equals.
    pub(crate) fn keep_sorted_from(&mut self, rank: usize) {
        let row = self.sorted_row(|score| score);
        self.keep_tokens(&row[rank..]);
    }

    /// Keeps the `n` highest scores, of equals those that `torch.sort` puts last.
    pub(crate) fn keep_highest(&mut self, n: usize) {
        let least = self.kth_highest(n);
        if self.scores().iter().filter(|&&it| it >= least).count() > n {
            return self.keep_sorted_from(self.vocab - n);
        }
        self.keep(move |score, _| score >= least);
    }

    /// The places of the whole row in the order of `torch.sort` by a key of the score, ascending.
    fn sorted_row(&self, key: impl Fn(f32) -> f32) -> Vec<usize> {
        let mut row = vec![f32::NEG_INFINITY; self.vocab];
        self.write(&mut row);
        let mut row: Vec<(f32, usize)> = row.into_iter().map(key).zip(0..).collect();
        sort(&mut row, |a, b| a.0 < b.0);
        row.into_iter().map(|it| it.1).collect()
    }

    /// Keeps the first `kept` of torch's top `considered`.
    pub(crate) fn keep_top(&mut self, kept: usize, considered: usize) {
        let mut row = vec![f32::NEG_INFINITY; self.vocab];
        self.write(&mut row);
        let mut best = TopK::new(considered, self.vocab);
        best.offer(&row, 0.0);
        let best: Vec<usize> = best.finish().into_iter().map(|it| it.place).take(kept).collect();
        self.keep_tokens(&best);
    }

    /// Keeps the candidates among some tokens.
    fn keep_tokens(&mut self, tokens: &[usize]) {
        let mut wanted = vec![false; self.vocab];
        tokens.iter().for_each(|&it| wanted[it] = true);
        self.mark(0..self.len, |_, _| true);
        for place in 0..self.len {
            let token = if self.whole { place } else { self.ids[place] as usize };
            self.marks[place] &= u8::from(wanted[token]);
        }
        self.sweep();
    }

    /// Keeps the candidates whose probability is at least `least`, and in any case the `always`
    /// highest scores; [`softmax`](Self::softmax) must have run.
    pub(crate) fn keep_probable(&mut self, least: f32, always: usize) {
        let kth = self.kth_highest(always);
        self.keep(move |score, prob| (prob >= least) | (score >= kth));
    }

    /// How many candidates have at least this probability.
    fn count_likely(&self, least: f32) -> usize {
        self.probs().iter().filter(|&&it| it >= least).count()
    }

    /// Keeps the candidates whose probability is at least `least`, and in any case the `always` likeliest
    /// of the row, of equals those that `torch.topk` takes. Where probabilities are too small for fp32
    /// that may be banned ones. [`softmax`](Self::softmax) must have run.
    pub(crate) fn keep_likeliest(&mut self, least: f32, always: usize) {
        if least == 0.0 || self.count_likely(least) >= always {
            return self.keep(move |_, prob| prob >= least);
        }
        let last = self.blocks.kth_highest(&self.probs[..self.len], always);
        if last > 0.0 && self.count_likely(last) == always {
            return self.keep(move |_, prob| prob >= last);
        }
        let mut row = vec![0.0; self.vocab];
        for (place, &prob) in self.probs().iter().enumerate() {
            row[if self.whole { place } else { self.ids[place] as usize }] = prob;
        }
        let mut best = TopK::new(always, self.vocab);
        best.offer(&row, 0.0);
        let best: Vec<usize> = best.finish().into_iter().map(|it| it.place).collect();
        self.keep_tokens(&best);
    }

    /// Keeps the `n` candidates with the lowest keys, of equals those that `torch.sort` puts first.
    pub(crate) fn keep_first(&mut self, n: usize, key: impl Fn(f32) -> f32 + Copy) {
        let keys = room(&mut self.terms, self.len);
        vector::map(&self.scores[..self.len], keys, move |&score| -key(score));
        let least = self.blocks.kth_highest(keys, n);
        if keys.iter().filter(|&&it| it >= least).count() > n {
            let row = self.sorted_row(key);
            return self.keep_tokens(&row[..n.min(row.len())]);
        }
        self.keep(move |score, _| -key(score) >= least);
    }

    /// Keeps the candidates whose rank and token the test accepts; [`rank`](Self::rank) must have
    /// run.
    pub(crate) fn keep_ranked(&mut self, test: impl Fn(usize, u32) -> bool) {
        self.mark(0..self.len, |_, _| false);
        for (rank, it) in self.ranked.iter().enumerate() {
            let place = it.value() as usize;
            let id = if self.whole { place as u32 } else { self.ids[place] };
            self.marks[place] = u8::from(test(rank, id) && self.scores[place] > f32::NEG_INFINITY);
        }
        self.sweep();
    }

    /// Keeps of a list the candidates whose token, score and probability the test accepts;
    /// [`softmax`](Self::softmax) must have run.
    pub(crate) fn keep_listed(&mut self, test: impl Fn(u32, f32, f32) -> bool) {
        self.mark(0..self.len, |_, _| false);
        for (place, &id) in self.ids[..self.len].iter().enumerate() {
            self.marks[place] = u8::from(test(id, self.scores[place], self.probs[place]));
        }
        self.sweep();
    }

    /// Replaces the scores of a list by a function of token, score and probability, in any order;
    /// drops what is banned by it. [`softmax`](Self::softmax) must have run.
    pub(crate) fn rescore_listed(&mut self, score: impl Fn(u32, f32, f32) -> f32) {
        let listed = self.ids[..self.len].iter().zip(&self.probs);
        for (it, (&id, &prob)) in self.scores.iter_mut().zip(listed) {
            *it = score(id, *it, prob);
        }
        if self.scores[..self.len].iter().any(|it| it.is_nan()) {
            self.max = f32::NAN;
        } else {
            self.keep(|_, _| true);
        }
    }

    /// Turns a whole row into the list of those that are not banned.
    pub(crate) fn drop_banned(&mut self) {
        if self.whole {
            self.mark(0..self.len, |_, _| true);
            self.list_marked();
        }
    }

    /// Writes the row back: the candidates' scores, and `-inf` for all others.
    pub(crate) fn write(&self, row: &mut [f32]) {
        if self.whole {
            row.copy_from_slice(self.scores());
            return;
        }
        row.fill(f32::NEG_INFINITY);
        for (&id, &score) in self.ids.iter().zip(self.scores()) {
            row[id as usize] = score;
        }
    }

    /// Marks with 1 the candidates of a range that the test accepts, and with 0 the others.
    fn mark(&mut self, range: std::ops::Range<usize>, test: impl Fn(f32, f32) -> bool + Copy) {
        room(&mut self.probs, self.len);
        // A multiple of eight, so that marks can be read eight at a time.
        let marks = room(&mut self.marks, self.len.next_multiple_of(8));
        marks[self.len..].fill(0);
        let (scores, probs) = (&self.scores[range.clone()], &self.probs[range.clone()]);
        vector::zip_map(scores, probs, &mut marks[range], move |&score, &prob| {
            u8::from((score > f32::NEG_INFINITY) & test(score, prob))
        });
    }

    /// Drops what is not marked: from the list, or by a ban while most of a whole row is left.
    fn sweep(&mut self) {
        let marks = &self.marks[..self.len];
        let kept: usize = marks.chunks(255).map(|it| usize::from(it.iter().sum::<u8>())).sum();
        if self.whole && kept > self.len / SHORT {
            for (score, &mark) in self.scores.iter_mut().zip(marks) {
                *score = if mark == 1 { *score } else { f32::NEG_INFINITY };
            }
            self.max = highest_block(&self.scores[..self.len]).0;
        } else {
            self.list_marked();
        }
    }

    /// Keeps a list of what is marked.
    fn list_marked(&mut self) {
        room(&mut self.ids, self.len);
        let mut kept = 0;
        let (words, _) = self.marks[..self.len.next_multiple_of(8)].as_chunks::<8>();
        for (word, marks) in words.iter().enumerate() {
            let mut marks = u64::from_le_bytes(*marks);
            while marks != 0 {
                let place = word * 8 + marks.trailing_zeros() as usize / 8;
                self.ids[kept] = if self.whole { place as u32 } else { self.ids[place] };
                self.scores[kept] = self.scores[place];
                kept += 1;
                marks &= marks - 1;
            }
        }
        self.whole = false;
        self.len = kept;
        self.max = highest_block(&self.scores[..kept]).0;
    }
}
