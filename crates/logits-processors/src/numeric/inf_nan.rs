//! Scores that are not numbers.

use crate::{Context, LogitsProcessor, Result, Stage};

/// Replaces NaN by 0 and infinities by the largest and smallest fp32 numbers
/// (`InfNanRemoveLogitsProcessor`).
///
/// This lifts bans: a banned token has the smallest number afterwards, and can be drawn when there
/// is no other.
///
/// ```
/// use mlxgk_logits_processors::{Context, InfNanRemove, LogitsProcessor};
///
/// let mut scores = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
/// InfNanRemove.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [0.0, f32::MAX, f32::MIN, 1.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfNanRemove;

impl LogitsProcessor for InfNanRemove {
    fn name(&self) -> &'static str {
        "InfNanRemoveLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::InfNanRemove
    }

    fn process(&self, _context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        for score in scores {
            *score = if score.is_nan() { 0.0 } else { score.clamp(f32::MIN, f32::MAX) };
        }
        Ok(())
    }
}
