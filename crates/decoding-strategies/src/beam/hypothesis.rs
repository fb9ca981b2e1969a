//! A beam: the tokens so far, and how they came about.

use mlxgk_logits_processors::Context;

use crate::{BeamPath, FinishReason, Recorded, RowOutput};

/// The score HF gives what must not win: far below any sum of log-probabilities, yet finite, so
/// that beams with it still have an order. Adding it in fp32 leaves multiples of 64.
pub(super) const OUT: f32 = -1e9;

/// A continuation of a prompt.
#[derive(Debug, Clone)]
pub(super) struct Hypothesis {
    /// New tokens.
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
    pub(super) fn into_output(self, prompt_index: usize, finish_reason: FinishReason) -> RowOutput {
        RowOutput {
            tokens: self.tokens,
            finish_reason: Some(finish_reason),
            recorded: Recorded::default(),
            beam: Some(BeamPath {
                prompt_index,
                score: self.score,
                beam_indices: self.beam_indices,
                transition_scores: self.transition_scores,
            }),
        }
    }
}

/// The running beams of one search, with a text for each that processors can look at.
#[derive(Debug)]
pub(super) struct Running {
    prompt: usize,
    prompt_len: usize,
    padding: usize,
    beams: Vec<Hypothesis>,
    /// Padding, prompt and new tokens; the prompt stays where it is while beams change.
    texts: Vec<Vec<u32>>,
}

impl Running {
    /// The beams before the first step. All hold the same prompt; so that the first step does not
    /// choose the same tokens for each, only the first may win.
    pub(super) fn start(prompt: usize, tokens: &[u32], padding: usize, num_beams: usize) -> Self {
        let beam = |beam| Hypothesis {
            tokens: Vec::new(),
            beam_indices: Vec::new(),
            transition_scores: Vec::new(),
            score: if beam == 0 { 0.0 } else { OUT },
        };
        let (beams, texts) = ((0..num_beams).map(beam).collect(), vec![tokens.to_vec(); num_beams]);
        Self { prompt, prompt_len: tokens.len(), padding, beams, texts }
    }

    pub(super) fn beams(&self) -> &[Hypothesis] {
        &self.beams
    }

    /// What processors get to see of each beam; `None` for one that has lost for good.
    pub(super) fn contexts(&self) -> impl Iterator<Item = Option<Context<'_>>> {
        let runs = |beam: &Hypothesis| beam.score > f32::NEG_INFINITY;
        self.beams.iter().zip(&self.texts).map(move |(beam, text)| {
            runs(beam).then_some(Context {
                tokens: text,
                prompt_len: self.prompt_len,
                padding: self.padding,
                row: self.prompt,
            })
        })
    }

    /// Lets `f` look at a beam's text with one token more.
    pub(super) fn with_token<T>(
        &mut self,
        beam: usize,
        token: u32,
        f: impl FnOnce(&Context<'_>) -> T,
    ) -> T {
        let (prompt_len, padding, row) = (self.prompt_len, self.padding, self.prompt);
        let text = &mut self.texts[beam];
        text.push(token);
        let found = f(&Context { tokens: text, prompt_len, padding, row });
        text.pop();
        found
    }

    /// Makes the chosen continuations the running beams; `first_row` is the row of the first beam.
    pub(super) fn advance(
        &mut self,
        chosen: &[Candidate],
        first_row: usize,
        score: impl Fn(&Candidate) -> f32,
    ) {
        let extended =
            |it: &Candidate| self.beams[it.beam].extended(first_row + it.beam, it, score(it));
        self.beams = chosen.iter().map(extended).collect();
        for (text, beam) in self.texts.iter_mut().zip(&self.beams) {
            text.truncate(self.prompt_len);
            text.extend_from_slice(&beam.tokens);
        }
    }
}

/// What a sequence's score is divided by: its new tokens to the power of the length penalty.
pub(super) fn length_divisor(new_tokens: usize, length_penalty: f64) -> f32 {
    (new_tokens as f64).powf(length_penalty) as f32
}
