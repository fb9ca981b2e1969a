//! The trait every processor and warper implements.

use std::fmt;

use crate::{Context, Result, Stage};

/// One row of a batch: its history and the scores to rewrite.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, RepetitionPenalty, Row};
///
/// let (mut first, mut second) = ([2.0, 2.0], [2.0, 2.0]);
/// let mut rows = [
///     Row { context: Context::new(&[0], 1), scores: &mut first },
///     Row { context: Context::new(&[1], 1), scores: &mut second },
/// ];
/// RepetitionPenalty::new(2.0)?.process_rows(&mut rows)?;
/// assert_eq!((first, second), ([1.0, 2.0], [2.0, 1.0]));
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug)]
pub struct Row<'a> {
    /// The tokens so far.
    pub context: Context<'a>,
    /// One fp32 score per vocabulary entry.
    pub scores: &'a mut [f32],
}

/// Rewrites the scores of one row in place.
///
/// A processor is a pure function of its context: the same tokens and the same scores give the
/// same result, however often and in whatever order it is called. So it may run again after a
/// rollback, on another beam, or on the positions of a draft, and it needs no reset.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, Result};
///
/// /// Forbids saying the same token twice in a row.
/// #[derive(Debug)]
/// struct NoStutter;
///
/// impl LogitsProcessor for NoStutter {
///     fn name(&self) -> &'static str {
///         "NoStutter"
///     }
///
///     fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
///         if let Some(&last) = context.tokens.last()
///             && let Some(score) = scores.get_mut(last as usize)
///         {
///             *score = f32::NEG_INFINITY;
///         }
///         Ok(())
///     }
/// }
///
/// let mut scores = [0.5, 1.5, 0.25];
/// NoStutter.process(&Context::new(&[0, 1], 1), &mut scores)?;
/// assert_eq!(scores, [0.5, f32::NEG_INFINITY, 0.25]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
pub trait LogitsProcessor: fmt::Debug + Send + Sync {
    /// HF's class name, for messages and for replacing a processor of the same kind.
    fn name(&self) -> &'static str;

    /// Where HF applies it; a processor HF does not know runs where HF runs a user's own.
    fn stage(&self) -> Stage {
        Stage::User
    }

    /// Rewrites `scores`, one fp32 value per vocabulary entry; `-inf` bans.
    ///
    /// # Errors
    /// When the context makes the processor's work impossible (a banned vocabulary, an id beyond
    /// it).
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()>;

    /// Rewrites the scores of several rows; the beams of one prompt stand next to each other.
    ///
    /// Only a processor whose result for a beam depends on the other beams overrides this
    /// (`PrefixConstrainedLogitsProcessor` does); for all others the rows are independent.
    ///
    /// # Errors
    /// As [`process`](Self::process), at the first row that fails.
    fn process_rows(&self, rows: &mut [Row<'_>]) -> Result<()> {
        for row in rows {
            self.process(&row.context, row.scores)?;
        }
        Ok(())
    }

    /// Tokens that follow the context whatever the model thinks, in order, as far as the processor
    /// knows: a loop that checks several tokens in one pass need not ask the model for each. Empty
    /// where there is a choice, which is what most processors leave.
    ///
    /// They are the likely spelling of a text without choice; where the vocabulary can spell it
    /// otherwise, the model may.
    ///
    /// # Errors
    /// When the context is one that the processor does not allow.
    fn forced_tokens(&self, _context: &Context<'_>) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }
}
