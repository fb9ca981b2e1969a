//! Tokens suppressed at the beginning.

use std::fmt;

use crate::mask::ban;
use crate::shown::Shown;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Bans tokens at the first position that is free (`SuppressTokensAtBeginLogitsProcessor`).
///
/// That position is the one after the prompt. It is the next one when the prompt has at most one
/// token and a first token is forced, which
/// [`after_forced_bos`](SuppressTokensAtBegin::after_forced_bos) says.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, SuppressTokensAtBegin};
///
/// let suppress = SuppressTokensAtBegin::new([1]);
/// let mut scores = [0.0; 2];
/// suppress.process(&Context::new(&[0, 0, 0], 2), &mut scores)?;
/// assert_eq!(scores, [0.0, 0.0]);
/// suppress.process(&Context::new(&[0, 0], 2), &mut scores)?;
/// assert_eq!(scores, [0.0, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SuppressTokensAtBegin {
    tokens: Vec<u32>,
    after_forced_bos: bool,
}

impl SuppressTokensAtBegin {
    /// A ban on the tokens as the first new ones; ids beyond the vocabulary are ignored.
    pub fn new(begin_suppress_tokens: impl Into<Vec<u32>>) -> Self {
        Self { tokens: begin_suppress_tokens.into(), after_forced_bos: false }
    }

    /// The same where a [forced first token](crate::ForcedBos) may take the first position.
    pub fn after_forced_bos(self) -> Self {
        Self { after_forced_bos: true, ..self }
    }
}

impl LogitsProcessor for SuppressTokensAtBegin {
    fn name(&self) -> &'static str {
        "SuppressTokensAtBeginLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::SuppressTokensAtBegin
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let forced = self.after_forced_bos && context.prompt_len <= 1;
        if context.tokens.len() == context.prompt_len + usize::from(forced) {
            ban(scores, &self.tokens);
        }
        Ok(())
    }
}

impl fmt::Debug for SuppressTokensAtBegin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SuppressTokensAtBegin")
            .field("tokens", &Shown(&self.tokens))
            .field("after_forced_bos", &self.after_forced_bos)
            .finish()
    }
}
