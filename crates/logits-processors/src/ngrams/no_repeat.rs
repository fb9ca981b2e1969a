//! No n-gram twice.

use super::continuations;
use crate::{Context, Error, LogitsProcessor, Result, Stage};

/// Bans every token that would complete an n-gram for the second time
/// (`NoRepeatNGramLogitsProcessor`).
///
/// The n-grams are those of the whole row: left padding, prompt and generated tokens. With a size
/// of 1 every token that occurs there is banned. Ids beyond the vocabulary are ignored. One pass
/// over the history, nothing kept between steps.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, NoRepeatNGram};
///
/// let mut scores = [0.0; 4];
/// let so_far = [0, 1, 2, 0, 1];
/// NoRepeatNGram::new(3)?.process(&Context::new(&so_far, 5), &mut scores)?;
/// assert_eq!(scores, [0.0, 0.0, f32::NEG_INFINITY, 0.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRepeatNGram {
    ngram_size: usize,
}

impl NoRepeatNGram {
    /// A ban on repeating `ngram_size` tokens in a row.
    ///
    /// # Errors
    /// When `ngram_size` is 0.
    pub fn new(ngram_size: usize) -> Result<Self> {
        if ngram_size == 0 {
            return Err(Error::parameter("no_repeat_ngram_size", "above 0", ngram_size));
        }
        Ok(Self { ngram_size })
    }
}

impl LogitsProcessor for NoRepeatNGram {
    fn name(&self) -> &'static str {
        "NoRepeatNGramLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::NoRepeatNGram
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let so_far = context.tokens;
        if let Some(start) = so_far.len().checked_sub(self.ngram_size - 1) {
            for token in continuations(so_far, &so_far[start..]) {
                if let Some(score) = scores.get_mut(token as usize) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }
}
