//! The presence penalty.

use super::{History, rewrite_once};
use crate::error::finite;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Subtracts a constant from the score of every token that has occurred.
///
/// This is OpenAI's `presence_penalty`: it counts generated tokens only by default (see
/// [`History`]). transformers has no such processor. Ids beyond the vocabulary are ignored.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, PresencePenalty};
///
/// let mut scores = [1.0; 4];
/// let so_far = [3, 0, 0, 1];
/// PresencePenalty::new(0.5)?.process(&Context::new(&so_far, 1), &mut scores)?;
/// assert_eq!(scores, [0.5, 0.5, 1.0, 1.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PresencePenalty {
    penalty: f32,
    history: History,
}

impl PresencePenalty {
    /// A penalty on the [generated](History::Generated) tokens; a negative one is a reward.
    ///
    /// # Errors
    /// When `penalty` is not finite.
    pub fn new(penalty: f64) -> Result<Self> {
        let penalty = finite("presence_penalty", penalty)?;
        Ok(Self { penalty, history: History::Generated })
    }

    /// The same penalty on another part of the history.
    pub fn over(self, history: History) -> Self {
        Self { history, ..self }
    }
}

impl LogitsProcessor for PresencePenalty {
    fn name(&self) -> &'static str {
        "PresencePenalty"
    }

    fn stage(&self) -> Stage {
        Stage::RepetitionPenalty
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        rewrite_once(self.history.of(context), scores, |it| it - self.penalty);
        Ok(())
    }
}
