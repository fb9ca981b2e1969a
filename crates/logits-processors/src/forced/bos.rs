//! The forced first token.

use crate::mask::force;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Forces a token when there is exactly one before it (`ForcedBOSTokenLogitsProcessor`).
///
/// It is meant for encoder-decoder models, whose decoder starts with one token. With a prompt of
/// any other length it does nothing.
///
/// ```
/// use mlxgk_logits_processors::{Context, ForcedBos, LogitsProcessor};
///
/// let mut scores = [2.0; 3];
/// ForcedBos::new(1).process(&Context::new(&[0], 1), &mut scores)?;
/// assert_eq!(scores, [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForcedBos {
    bos_token_id: u32,
}

impl ForcedBos {
    /// Forces `bos_token_id` as the second token of the row.
    pub fn new(bos_token_id: u32) -> Self {
        Self { bos_token_id }
    }
}

impl LogitsProcessor for ForcedBos {
    fn name(&self) -> &'static str {
        "ForcedBOSTokenLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::ForcedBos
    }

    /// # Errors
    /// When the token is outside the vocabulary and has to be forced.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        if context.tokens.len() == 1 {
            force(scores, &[self.bos_token_id], "forced_bos_token_id")?;
        }
        Ok(())
    }
}
