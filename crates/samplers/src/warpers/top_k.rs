//! Top-k: only the k most likely.

use mlxgk_logits_processors::{Error, Result};

use super::{Warp, at_least_one, processor};
use crate::candidates::Candidates;

/// Keeps the `k` highest scores (HF's `TopKLogitsWarper`; Fan et al., 2018).
///
/// All that tie with the lowest kept score are kept too.
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, TopK};
///
/// const OUT: f32 = f32::NEG_INFINITY;
/// let mut scores = [3.0, 1.0, 2.0, 2.0];
/// TopK::new(2)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [3.0, OUT, 2.0, 2.0]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopK(usize);

impl TopK {
    /// Keeps `k` tokens, at least 1.
    ///
    /// # Errors
    /// When `k` is 0.
    pub fn new(k: usize) -> Result<Self> {
        match k {
            0 => Err(Error::parameter("top_k", "at least 1", 0)),
            k => Ok(Self(k)),
        }
    }

    /// Keeps at least this many, even where `k` is smaller.
    ///
    /// # Errors
    /// When it is 0.
    pub fn min_tokens_to_keep(self, n: usize) -> Result<Self> {
        Ok(Self(self.0.max(at_least_one(n)?)))
    }

    /// How many tokens are kept, ties with the last apart.
    pub fn k(self) -> usize {
        self.0
    }
}

impl Warp for TopK {
    fn warp(&self, candidates: &mut Candidates) {
        if self.0 < candidates.len() {
            let kth = candidates.kth_highest(self.0);
            candidates.keep(move |score, _| score >= kth);
        }
    }
}

processor!(TopK, "TopKLogitsWarper", TopK);
