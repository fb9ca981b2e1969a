//! Tokens forced at given positions.

use std::collections::BTreeMap;

use crate::mask::force;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Forces tokens by position (`forced_decoder_ids`; `ForceTokensLogitsProcessor`).
///
/// Whisper's language and task tokens are the known use. transformers had this until 4.46; the
/// semantics are those of its last version. A position is an index into the row, padding and prompt
/// counted.
///
/// ```
/// use mlxgk_logits_processors::{Context, ForcedDecoderIds, LogitsProcessor};
///
/// let mut scores = [2.0; 3];
/// let forced = ForcedDecoderIds::new([(1, 2), (2, 0)]);
/// forced.process(&Context::new(&[0], 1), &mut scores)?;
/// assert_eq!(scores, [f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForcedDecoderIds(BTreeMap<usize, u32>);

impl ForcedDecoderIds {
    /// Tokens by position; of a position given twice the last token counts.
    pub fn new(positions_and_tokens: impl IntoIterator<Item = (usize, u32)>) -> Self {
        Self(positions_and_tokens.into_iter().collect())
    }
}

impl LogitsProcessor for ForcedDecoderIds {
    fn name(&self) -> &'static str {
        "ForceTokensLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::ForceTokens
    }

    /// # Errors
    /// When the token to be forced is outside the vocabulary.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        match self.0.get(&context.tokens.len()) {
            Some(&token) => force(scores, &[token], "forced_decoder_ids"),
            None => Ok(()),
        }
    }
}
