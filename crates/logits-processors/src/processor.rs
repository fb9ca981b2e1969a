//! The trait every processor and warper implements, and the list that is itself one.

use crate::{Context, Result};

/// Rewrites the scores of one row in place.
///
/// A processor is a pure function of its context: the same tokens and the same scores give the
/// same result, however often and in whatever order it is called.
pub trait LogitsProcessor {
    /// HF's class name, for messages and for replacing a processor of the same type.
    fn name(&self) -> &'static str;

    /// Rewrites `scores`, one fp32 value per vocabulary entry; `-inf` bans.
    ///
    /// # Errors
    /// When the context makes the processor's work impossible (a banned vocabulary, an id beyond
    /// it).
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()>;
}

/// Processors applied one after the other.
#[derive(Default)]
pub struct ProcessorList(Vec<Box<dyn LogitsProcessor>>);
