//! The frequency penalty.

use super::History;
use crate::error::finite;
use crate::{Context, LogitsProcessor, Result, Stage, scratch};

/// Subtracts from the score of a token a constant for each time it has occurred.
///
/// This is OpenAI's `frequency_penalty`: `score - count * penalty`, where only generated tokens
/// count by default (see [`History`]). transformers has no such processor. Ids beyond
/// the vocabulary are ignored.
///
/// ```
/// use mlxgk_logits_processors::{Context, FrequencyPenalty, LogitsProcessor};
///
/// let mut scores = [1.0; 4];
/// let so_far = [3, 0, 0, 1];
/// FrequencyPenalty::new(0.5)?.process(&Context::new(&so_far, 1), &mut scores)?;
/// assert_eq!(scores, [0.0, 0.5, 1.0, 1.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct FrequencyPenalty {
    penalty: f32,
    history: History,
}

impl FrequencyPenalty {
    /// A penalty on the [generated](History::Generated) tokens; a negative one is a reward.
    ///
    /// # Errors
    /// When `penalty` is not finite.
    pub fn new(penalty: f64) -> Result<Self> {
        let penalty = finite("frequency_penalty", penalty)?;
        Ok(Self { penalty, history: History::Generated })
    }

    /// The same penalty on another part of the history.
    pub fn over(self, history: History) -> Self {
        Self { history, ..self }
    }
}

impl LogitsProcessor for FrequencyPenalty {
    fn name(&self) -> &'static str {
        "FrequencyPenalty"
    }

    fn stage(&self) -> Stage {
        Stage::RepetitionPenalty
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let tokens = self.history.of(context);
        // While the scores are set aside, their places serve as counters. That spares a table of
        // the vocabulary's size and a sort of the history.
        scratch::with(&scratch::SCORES, |aside| {
            let score = |it: u32, scores: &[f32]| scores.get(it as usize).copied().unwrap_or(0.0);
            aside.extend(tokens.iter().map(|&it| score(it, scores)));
            update(tokens, scores, |_, count| *count = 0.0);
            update(tokens, scores, |_, count| *count += 1.0);
            for (kept, &token) in aside.iter_mut().zip(tokens) {
                if *kept > f32::NEG_INFINITY {
                    *kept -= score(token, scores) * self.penalty;
                }
            }
            update(tokens, scores, |at, score| *score = aside[at]);
        });
        Ok(())
    }
}

/// Calls `f` with the index and the slot of each token in the vocabulary.
fn update(tokens: &[u32], slots: &mut [f32], mut f: impl FnMut(usize, &mut f32)) {
    for (at, &token) in tokens.iter().enumerate() {
        if let Some(slot) = slots.get_mut(token as usize) {
            f(at, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PresencePenalty;

    /// llama.cpp's own examples (tests/test-sampling.cpp, `test_penalties`): probabilities before
    /// and after, with a frequency and a presence penalty of 5 on all tokens so far.
    #[test]
    fn agrees_with_llama_cpp() {
        let cases: [(&[u32], [f32; 5]); 3] = [
            (&[0], [0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
            (&[0, 1, 2], [0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
            (&[0, 1, 2, 0, 0], [0.000000, 0.000023, 0.000023, 0.499977, 0.499977]),
        ];
        for (so_far, expected) in cases {
            let mut scores = [0.2f32.ln(); 5];
            let context = Context::new(so_far, so_far.len());
            let last = History::Last(64);
            FrequencyPenalty::new(5.0).unwrap().over(last).process(&context, &mut scores).unwrap();
            PresencePenalty::new(5.0).unwrap().over(last).process(&context, &mut scores).unwrap();
            let sum: f32 = scores.iter().map(|it| it.exp()).sum();
            for (score, expected) in scores.iter().zip(expected) {
                assert!((score.exp() / sum - expected).abs() < 1e-5, "{so_far:?}: {scores:?}");
            }
        }
    }

    #[test]
    fn ids_beyond_the_vocabulary_and_bans_stay_out_of_it() {
        let mut scores = [f32::NEG_INFINITY, 1.0];
        let context = Context::new(&[9, 0, 1, 9, 1], 0);
        FrequencyPenalty::new(0.25).unwrap().process(&context, &mut scores).unwrap();
        assert_eq!(scores, [f32::NEG_INFINITY, 0.5]);
    }
}
