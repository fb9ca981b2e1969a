//! The repetition penalty.

use super::{History, penalised, rewrite_once};
use crate::error::positive;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Makes every token that has occurred less likely, once however often it occurred
/// (`RepetitionPenaltyLogitsProcessor`; Keskar et al., [CTRL](https://arxiv.org/abs/1909.05858)).
///
/// A negative score is multiplied by the penalty, any other is divided by it: above 1 the token
/// becomes less likely, below 1 more likely. By default it looks at prompt and generated
/// tokens without leading padding, as `generate` does; padding that follows an end token counts.
/// Ids beyond the vocabulary are ignored.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, RepetitionPenalty};
///
/// let mut scores = [2.0, -2.0, 2.0, -2.0];
/// let so_far = [0, 1, 0];
/// RepetitionPenalty::new(2.0)?.process(&Context::new(&so_far, 3), &mut scores)?;
/// assert_eq!(scores, [1.0, -4.0, 2.0, -2.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RepetitionPenalty {
    penalty: f32,
    history: History,
}

impl RepetitionPenalty {
    /// A penalty on the [whole](History::Whole) history.
    ///
    /// # Errors
    /// When `penalty` is not a finite number above 0.
    pub fn new(penalty: f64) -> Result<Self> {
        let penalty = positive("repetition_penalty", penalty)?;
        Ok(Self { penalty, history: History::Whole })
    }

    /// The same penalty on another part of the history.
    pub fn over(self, history: History) -> Self {
        Self { history, ..self }
    }
}

impl LogitsProcessor for RepetitionPenalty {
    fn name(&self) -> &'static str {
        "RepetitionPenaltyLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::RepetitionPenalty
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        rewrite_once(self.history.of(context), scores, |it| penalised(it, self.penalty));
        Ok(())
    }
}
