//! A minimum for the whole length.

use crate::mask::ban;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Bans the end tokens while the row, with its padding and prompt, is shorter than a length
/// (`MinLengthLogitsProcessor`).
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, MinLength};
///
/// let min_length = MinLength::new(3, [1]);
/// let mut scores = [0.0; 2];
/// min_length.process(&Context::new(&[0, 0, 0], 1), &mut scores)?;
/// assert_eq!(scores, [0.0, 0.0]);
/// min_length.process(&Context::new(&[0, 0], 1), &mut scores)?;
/// assert_eq!(scores, [0.0, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinLength {
    min_length: usize,
    eos_token_ids: Vec<u32>,
}

impl MinLength {
    /// No end before `min_length` tokens; ids beyond the vocabulary are ignored.
    pub fn new(min_length: usize, eos_token_ids: impl Into<Vec<u32>>) -> Self {
        Self { min_length, eos_token_ids: eos_token_ids.into() }
    }
}

impl LogitsProcessor for MinLength {
    fn name(&self) -> &'static str {
        "MinLengthLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::MinLength
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        if context.tokens.len() < self.min_length {
            ban(scores, &self.eos_token_ids);
        }
        Ok(())
    }
}
