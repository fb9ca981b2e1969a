//! The tokens still in the running, and the working space all warpers share.
//!
//! A warper never needs the banned tokens, so after the first cut only the survivors are kept, in
//! a short list of ids and scores. What a warper knows of the banned is how many there are:
//! torch's sums run over whole rows, and a survivor's place in the row decides into which partial
//! sum it goes.

use mlxgk_logits_processors::{Error, ErrorKind, Result};

use crate::greedy::highest;
use crate::select::{self, Ranked};
use crate::torch_math::{self, LaneSum};

/// One candidate, as a test in [`Candidates::keep`] sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// Its place in the list.
    pub(crate) place: usize,
    pub(crate) id: u32,
    pub(crate) score: f32,
}

/// One row's candidates, in the order of their ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Candidates {
    vocab: usize,
    /// Whether every token of the row is listed, the banned ones too; then `ids` is empty.
    whole: bool,
    ids: Vec<u32>,
    scores: Vec<f32>,
    max: f32,
    probs: Vec<f32>,
    ranked: Vec<Ranked>,
    spare: Vec<f32>,
}

impl Candidates {
    /// Takes a whole row, each score divided by `temperature`.
    ///
    /// # Errors
    /// When a score is NaN or infinitely high, or none is above `-inf`.
    pub(crate) fn load(&mut self, scores: &[f32], temperature: f32) -> Result<()> {
        self.max = drawable_max(scores, temperature)?;
        self.vocab = scores.len();
        self.whole = true;
        self.ids.clear();
        self.scores.clear();
        self.scores.extend(scores.iter().map(|score| score / temperature));
        Ok(())
    }

    /// Takes the `k` highest scores of a row and all that equal the lowest of them, each divided
    /// by `temperature`; what [`load`](Self::load) and a top-k give, in one reading.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(crate) fn load_top(&mut self, scores: &[f32], temperature: f32, k: usize) -> Result<()> {
        self.max = drawable_max(scores, temperature)?;
        self.vocab = scores.len();
        self.whole = false;
        let kth = select::kth_highest(scores, k, &mut self.spare);
        let least = select::least_with_quotient(kth, temperature);
        self.ids.clear();
        self.scores.clear();
        for (id, &score) in scores.iter().enumerate() {
            if score >= least && score > f32::NEG_INFINITY {
                self.ids.push(id as u32);
                self.scores.push(score / temperature);
            }
        }
        Ok(())
    }

    /// How many candidates are listed.
    pub(crate) fn len(&self) -> usize {
        self.scores.len()
    }

    /// How many tokens the row had.
    pub(crate) fn vocab(&self) -> usize {
        self.vocab
    }

    /// The candidates' ids in ascending order; `None` while all tokens are listed.
    pub(crate) fn ids(&self) -> Option<&[u32]> {
        (!self.whole).then_some(&self.ids)
    }

    /// The token of the candidate at a place of the list.
    pub(crate) fn id(&self, at: usize) -> usize {
        if self.whole { at } else { self.ids[at] as usize }
    }

    /// The candidates' scores.
    pub(crate) fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// The highest score.
    pub(crate) fn max(&self) -> f32 {
        self.max
    }

    /// The probabilities the last [`softmax`](Self::softmax) gave.
    pub(crate) fn probs(&self) -> &[f32] {
        &self.probs
    }

    /// The candidates as [`rank`](Self::rank) sorted them.
    pub(crate) fn ranked(&self) -> &[Ranked] {
        &self.ranked
    }

    /// Replaces every score; `rescale` must not change their order.
    pub(crate) fn rescale(&mut self, rescale: impl Fn(f32) -> f32) {
        self.max = rescale(self.max);
        for score in &mut self.scores {
            *score = rescale(*score);
        }
    }

    /// Computes `torch.softmax` of the row.
    pub(crate) fn softmax(&mut self) {
        torch_math::exp_each(&self.scores, self.max, &mut self.probs);
        let mut sum = LaneSum::new(self.vocab);
        if self.whole {
            sum.add_row(&self.probs);
        } else {
            for (&id, &term) in self.ids.iter().zip(&self.probs) {
                sum.add(id as usize, term);
            }
        }
        let scale = 1.0 / sum.finish();
        for prob in &mut self.probs {
            *prob *= scale;
        }
    }

    /// The entropy in nats, as `torch.distributions.Categorical` computes it.
    pub(crate) fn entropy(&mut self) -> f32 {
        self.probs.clear();
        self.probs.resize(self.scores.len(), 0.0);
        let position = |at: usize| if self.whole { at } else { self.ids[at] as usize };
        torch_math::categorical(&self.scores, self.vocab, position, &mut self.probs)
    }

    /// The `k`-th highest score; the lowest where there are fewer.
    pub(crate) fn kth_highest(&mut self, k: usize) -> f32 {
        select::kth_highest(&self.scores, k, &mut self.spare)
    }

    /// Sorts the candidates by a key of their score, ascending; equal keys stay in order of id.
    pub(crate) fn rank(&mut self, key: impl Fn(f32) -> f32) {
        self.ranked.clear();
        let keys = self.scores.iter().map(|&score| key(score));
        self.ranked.extend(keys.enumerate().map(|(at, key)| Ranked::new(key, at)));
        self.ranked.sort_unstable();
    }

    /// Keeps the candidates at these ranks.
    pub(crate) fn keep_ranks(&mut self, ranks: std::ops::Range<usize>) {
        self.ranked.truncate(ranks.end);
        self.ranked.drain(..ranks.start);
        self.ranked.sort_unstable_by_key(Ranked::place);
        let mut kept = 0;
        for ranked in &self.ranked {
            let place = ranked.place();
            if self.scores[place] == f32::NEG_INFINITY {
                continue;
            }
            if self.whole {
                self.ids.push(place as u32);
            } else {
                self.ids[kept] = self.ids[place];
            }
            self.scores[kept] = self.scores[place];
            kept += 1;
        }
        self.shorten(kept);
    }

    /// Keeps the candidates the test accepts, and none that is banned.
    pub(crate) fn keep(&mut self, test: impl Fn(Candidate) -> bool) {
        let mut kept = 0;
        for place in 0..self.scores.len() {
            let (id, score) = (self.id(place) as u32, self.scores[place]);
            if score == f32::NEG_INFINITY || !test(Candidate { place, id, score }) {
                continue;
            }
            if self.whole {
                self.ids.push(id);
            } else {
                self.ids[kept] = id;
            }
            self.scores[kept] = score;
            kept += 1;
        }
        self.shorten(kept);
    }

    /// Turns a whole row into the list of those that are not banned.
    pub(crate) fn drop_banned(&mut self) {
        if self.whole {
            self.keep(|_| true);
        }
    }

    /// Keeps the candidates whose probability is at least `least`, and in any case the `always`
    /// highest scores; [`softmax`](Self::softmax) must have run.
    pub(crate) fn keep_probable(&mut self, least: f32, always: usize) {
        let kth = self.kth_highest(always);
        let probs = std::mem::take(&mut self.probs);
        self.keep(|it| probs[it.place] >= least || it.score >= kth);
        self.probs = probs;
    }

    /// Writes the row back: the candidates' scores, and `-inf` for all others.
    pub(crate) fn write(&self, row: &mut [f32]) {
        if self.whole {
            row.copy_from_slice(&self.scores);
            return;
        }
        row.fill(f32::NEG_INFINITY);
        for (&id, &score) in self.ids.iter().zip(&self.scores) {
            row[id as usize] = score;
        }
    }

    fn shorten(&mut self, kept: usize) {
        self.whole = false;
        self.ids.truncate(kept);
        self.scores.truncate(kept);
        self.max = self.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }
}

/// The highest score over `temperature`, if there is a token to draw.
fn drawable_max(scores: &[f32], temperature: f32) -> Result<f32> {
    let max = highest(scores);
    if max == f32::NEG_INFINITY {
        let message = "every token is banned: no score is above -inf";
        return Err(Error::new(ErrorKind::NoTokenAllowed, message));
    }
    if !(max / temperature).is_finite() {
        let message = format!("no token can be drawn: the highest score is {}", max / temperature);
        return Err(Error::new(ErrorKind::NoTokenAllowed, message));
    }
    Ok(max / temperature)
}
