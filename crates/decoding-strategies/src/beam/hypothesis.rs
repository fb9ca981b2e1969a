//! A beam: the tokens so far, and how they came about.

use mlxgk_logits_processors::Context;

use super::Beam;
use crate::FinishReason;

/// The score HF gives what must not win: far below any sum of log-probabilities, yet finite, so
/// that beams with it still have an order. Adding it in fp32 leaves multiples of 64.
pub(super) const OUT: f32 = -1e9;

/// A continuation of a prompt.
#[derive(Debug, Clone)]
pub(super) struct Hypothesis {
    /// Padding, prompt and new tokens.
    pub(super) tokens: Vec<u32>,
    pub(super) beam_indices: Vec<usize>,
    pub(super) transition_scores: Vec<f32>,
    /// The sum of the transition scores, or that and [`OUT`].
    pub(super) score: f32,
}

/// One more token for one of a prompt's beams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Which of the prompt's beams it continues.
    pub(super) beam: usize,
    pub(super) token: u32,
    /// Its processed log-probability.
    pub(super) log_prob: f32,
    /// The beam's score and `log_prob`.
    pub(super) score: f32,
    /// Why the sequence ends with it, if it does.
    pub(super) end: Option<FinishReason>,
}

impl Hypothesis {
    /// The beams before the first step. All hold the same prompt; so that the first step does not
    /// choose the same tokens for each, only the first may win.
    pub(super) fn start(prompt: &[u32], num_beams: usize) -> Vec<Self> {
        let beam = |beam| Self {
            tokens: prompt.to_vec(),
            beam_indices: Vec::new(),
            transition_scores: Vec::new(),
            score: if beam == 0 { 0.0 } else { OUT },
        };
        (0..num_beams).map(beam).collect()
    }

    /// What processors get to see; `None` for a beam that has lost for good.
    pub(super) fn context(
        &self,
        prompt: usize,
        prompt_len: usize,
        padding: usize,
    ) -> Option<Context<'_>> {
        let tokens = &self.tokens;
        (self.score > f32::NEG_INFINITY).then_some(Context {
            tokens,
            prompt_len,
            padding,
            row: prompt,
        })
    }

    /// This beam, row `row` of the batch, continued by `candidate`, with the given score.
    pub(super) fn extended(&self, row: usize, candidate: &Candidate, score: f32) -> Self {
        Self {
            tokens: [self.tokens.as_slice(), &[candidate.token]].concat(),
            beam_indices: [self.beam_indices.as_slice(), &[row]].concat(),
            transition_scores: [self.transition_scores.as_slice(), &[candidate.log_prob]].concat(),
            score,
        }
    }

    /// The sequence to return.
    pub(super) fn into_beam(
        mut self,
        prompt_index: usize,
        prompt_len: usize,
        finish_reason: FinishReason,
    ) -> Beam {
        Beam {
            prompt_index,
            tokens: self.tokens.split_off(prompt_len),
            score: self.score,
            beam_indices: self.beam_indices,
            transition_scores: self.transition_scores,
            finish_reason,
        }
    }
}

/// What a sequence's score is divided by: its new tokens to the power of the length penalty.
pub(super) fn length_divisor(new_tokens: usize, length_penalty: f64) -> f32 {
    (new_tokens as f64).powf(length_penalty) as f32
}
