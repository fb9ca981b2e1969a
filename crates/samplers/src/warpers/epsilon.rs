//! Epsilon sampling: nothing below a fixed probability.

use mlxgk_logits_processors::{Error, Result};

use super::{Warp, at_least_one, processor};
use crate::candidates::Candidates;

/// Removes tokens with a probability below `epsilon` (HF's `EpsilonLogitsWarper`; Hewitt et al.,
/// 2022).
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, EpsilonCutoff};
///
/// const OUT: f32 = f32::NEG_INFINITY;
/// let mut scores = [0.5f32, 0.1, 0.3, 0.1].map(f32::ln);
/// EpsilonCutoff::new(0.2)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [0.5f32.ln(), OUT, 0.3f32.ln(), OUT]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpsilonCutoff {
    epsilon: f32,
    min_tokens_to_keep: usize,
}

impl EpsilonCutoff {
    /// A cutoff between 0 and 1; the paper recommends 3e-4 to 9e-4.
    ///
    /// # Errors
    /// When `epsilon` is not strictly between 0 and 1.
    pub fn new(epsilon: f64) -> Result<Self> {
        if epsilon > 0.0 && epsilon < 1.0 {
            return Ok(Self { epsilon: epsilon as f32, min_tokens_to_keep: 1 });
        }
        Err(Error::parameter("epsilon_cutoff", "above 0 and below 1", epsilon))
    }

    /// Keeps at least this many tokens.
    ///
    /// # Errors
    /// When it is 0.
    pub fn min_tokens_to_keep(self, n: usize) -> Result<Self> {
        Ok(Self { min_tokens_to_keep: at_least_one(n)?, ..self })
    }
}

impl Warp for EpsilonCutoff {
    fn warp(&self, candidates: &mut Candidates) {
        candidates.softmax();
        candidates.keep_probable(self.epsilon, self.min_tokens_to_keep);
    }
}

processor!(EpsilonCutoff, "EpsilonLogitsWarper", Epsilon);
