//! The forced last token.

use crate::mask::force;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Forces the end when only one token fits (`ForcedEOSTokenLogitsProcessor`).
///
/// With several end tokens all of them are allowed, at a score of 0 each.
///
/// ```
/// use mlxgk_logits_processors::{Context, ForcedEos, LogitsProcessor};
///
/// let mut scores = [2.0; 3];
/// ForcedEos::new(3, [1]).process(&Context::new(&[0, 0], 1), &mut scores)?;
/// assert_eq!(scores, [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForcedEos {
    max_length: usize,
    eos_token_ids: Vec<u32>,
}

impl ForcedEos {
    /// Forces one of `eos_token_ids` as the `max_length`-th token, padding and prompt counted.
    pub fn new(max_length: usize, eos_token_ids: impl Into<Vec<u32>>) -> Self {
        Self { max_length, eos_token_ids: eos_token_ids.into() }
    }
}

impl LogitsProcessor for ForcedEos {
    fn name(&self) -> &'static str {
        "ForcedEOSTokenLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::ForcedEos
    }

    /// # Errors
    /// When an end token that has to be forced is outside the vocabulary.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        if context.tokens.len() + 1 == self.max_length {
            force(scores, &self.eos_token_ids, "forced_eos_token_id")?;
        }
        Ok(())
    }
}
