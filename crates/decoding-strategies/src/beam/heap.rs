//! The finished sequences of one search, as transformers 4 kept them (`BeamHypotheses`).

use super::{BeamOptions, EarlyStopping, hypothesis::Hypothesis};
use crate::FinishReason;

/// The best finished sequences; as many as a group has beams.
///
/// Scores are doubles, as in Python.
#[derive(Debug, Clone)]
pub(super) struct Heap {
    room: usize,
    /// In the order they came; the sequence's own score is not divided by the length.
    pub(super) entries: Vec<Finished>,
    worst: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Finished {
    pub(super) score: f64,
    pub(super) hypothesis: Hypothesis,
    pub(super) finish_reason: FinishReason,
}

impl Heap {
    pub(super) fn new(room: usize) -> Self {
        Self { room, entries: Vec::new(), worst: 1e9 }
    }

    /// Takes a sequence of `new_tokens`, of which `sum` is the score before it is divided by the
    /// length, if it is good enough.
    pub(super) fn add(
        &mut self,
        sum: f32,
        new_tokens: usize,
        length_penalty: f64,
        finish_reason: FinishReason,
        hypothesis: impl FnOnce() -> Hypothesis,
    ) {
        let score = f64::from(sum) / (new_tokens as f64).powf(length_penalty);
        if self.entries.len() == self.room && score <= self.worst {
            return;
        }
        self.entries.push(Finished { score, hypothesis: hypothesis(), finish_reason });
        self.worst = self.worst.min(score);
        if self.entries.len() > self.room {
            let at = self.lowest();
            self.entries.remove(at);
            self.worst = self.entries[self.lowest()].score;
        }
    }

    /// Where the first of the lowest scores stands.
    fn lowest(&self) -> usize {
        let scores = self.entries.iter().map(|it| it.score).enumerate();
        let lowest = scores.min_by(|(_, a), (_, b)| a.total_cmp(b));
        lowest.map_or(0, |(at, _)| at)
    }

    /// Whether no running beam is expected to be better than the worst here; `best` is the highest
    /// score of a continuation, the end included, of `new_tokens`.
    pub(super) fn is_done(
        &self,
        best: f32,
        new_tokens: usize,
        max_new_tokens: usize,
        options: &BeamOptions,
    ) -> bool {
        if self.entries.len() < self.room {
            return false;
        }
        let length = match options.early_stopping {
            EarlyStopping::WhenFinished => return true,
            EarlyStopping::Never if options.length_penalty > 0.0 => max_new_tokens,
            EarlyStopping::Never | EarlyStopping::Heuristic => new_tokens,
        };
        self.worst >= f64::from(best) / (length as f64).powf(options.length_penalty)
    }
}
