//! A minimum for what is generated.

use crate::mask::ban;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Bans the end tokens until enough new tokens were generated
/// (`MinNewTokensLengthLogitsProcessor`; the prompt's length is the context's).
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, MinNewTokensLength};
///
/// let mut scores = [0.0; 2];
/// MinNewTokensLength::new(2, [1]).process(&Context::new(&[0, 0, 0], 2), &mut scores)?;
/// assert_eq!(scores, [0.0, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinNewTokensLength {
    min_new_tokens: usize,
    eos_token_ids: Vec<u32>,
}

impl MinNewTokensLength {
    /// No end before `min_new_tokens` new tokens; ids beyond the vocabulary are ignored.
    pub fn new(min_new_tokens: usize, eos_token_ids: impl Into<Vec<u32>>) -> Self {
        Self { min_new_tokens, eos_token_ids: eos_token_ids.into() }
    }
}

impl LogitsProcessor for MinNewTokensLength {
    fn name(&self) -> &'static str {
        "MinNewTokensLengthLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::MinNewTokens
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        if context.generated().len() < self.min_new_tokens {
            ban(scores, &self.eos_token_ids);
        }
        Ok(())
    }
}
