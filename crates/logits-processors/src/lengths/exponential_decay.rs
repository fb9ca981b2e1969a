//! A growing push towards the end.

use crate::error::finite;
use crate::mask::in_vocabulary;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Raises the score of the end tokens exponentially with every token past a number of new ones
/// (`ExponentialDecayLengthPenalty`).
///
/// With `k` tokens past the start, an end token's score `s` becomes `s + |s| * (factor^k - 1)`.
/// Banned end tokens stay banned. Where the sum leaves fp32 it stops at the largest number, so that
/// the end is certain; torch would go to infinity, and Python raises once `factor^k` leaves fp64.
///
/// ```
/// use mlxgk_logits_processors::{Context, ExponentialDecayLengthPenalty, LogitsProcessor};
///
/// // Two tokens past the start: the prompt has one, and one new token is free.
/// let so_far = [0, 0, 0, 0];
/// let mut scores = [1.0, -1.0];
/// let penalty = ExponentialDecayLengthPenalty::new(1, 2.0, [1])?;
/// penalty.process(&Context::new(&so_far, 1), &mut scores)?;
/// assert_eq!(scores, [1.0, 2.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ExponentialDecayLengthPenalty {
    start: usize,
    factor: f64,
    eos_token_ids: Vec<u32>,
}

impl ExponentialDecayLengthPenalty {
    /// A push that grows by `factor` from the first token after `start` new ones.
    ///
    /// # Errors
    /// When `factor` is not finite.
    pub fn new(start: usize, factor: f64, eos_token_ids: impl Into<Vec<u32>>) -> Result<Self> {
        finite("exponential_decay_length_penalty", factor)?;
        let mut eos_token_ids = eos_token_ids.into();
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        Ok(Self { start, factor, eos_token_ids })
    }
}

impl LogitsProcessor for ExponentialDecayLengthPenalty {
    fn name(&self) -> &'static str {
        "ExponentialDecayLengthPenalty"
    }

    fn stage(&self) -> Stage {
        Stage::ExponentialDecay
    }

    /// # Errors
    /// When an end token is beyond the vocabulary, once the push begins.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let past = context.generated().len().saturating_sub(self.start);
        if past == 0 {
            return Ok(());
        }
        in_vocabulary(&self.eos_token_ids, scores.len(), "eos_token_id")?;
        let growth = (self.factor.powf(past as f64) - 1.0) as f32;
        let growth = growth.clamp(f32::MIN, f32::MAX);
        for &token in &self.eos_token_ids {
            let score = &mut scores[token as usize];
            if score.is_finite() {
                *score = (*score + score.abs() * growth).clamp(f32::MIN, f32::MAX);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_leaves_the_numbers() {
        let so_far = [0; 5000];
        for factor in [1e300, -1e300, 7.0, -7.0, 0.0] {
            let Ok(penalty) = ExponentialDecayLengthPenalty::new(0, factor, [0, 1, 2, 3]) else {
                continue;
            };
            let mut scores = [0.0, 3.0, -3.0, f32::NEG_INFINITY];
            penalty.process(&Context::new(&so_far, 0), &mut scores).unwrap();
            assert!(scores[..3].iter().all(|it| it.is_finite()), "{factor}: {scores:?}");
            assert_eq!(scores[3], f32::NEG_INFINITY);
        }
    }
}
