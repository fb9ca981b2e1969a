//! Suppressed tokens.

use std::fmt;

use crate::mask::ban;
use crate::shown::Shown;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Bans tokens at every step (`SuppressTokensLogitsProcessor`).
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, SuppressTokens};
///
/// let mut scores = [0.0; 2];
/// SuppressTokens::new([1]).process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [0.0, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SuppressTokens(Vec<u32>);

impl SuppressTokens {
    /// A ban on the tokens; ids beyond the vocabulary are ignored.
    pub fn new(suppress_tokens: impl Into<Vec<u32>>) -> Self {
        Self(suppress_tokens.into())
    }
}

impl LogitsProcessor for SuppressTokens {
    fn name(&self) -> &'static str {
        "SuppressTokensLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::SuppressTokens
    }

    fn process(&self, _context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        ban(scores, &self.0);
        Ok(())
    }
}

impl fmt::Debug for SuppressTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SuppressTokens").field(&Shown(&self.0)).finish()
    }
}
