//! Min-p: only what is not too far below the most likely.

use mlxgk_logits_processors::{Error, Result};

use super::{Warp, at_least_one, processor};
use crate::candidates::Candidates;

/// Keeps tokens at least `p` times as likely as the most likely one (HF's `MinPLogitsWarper`;
/// Nguyen et al., 2024).
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, MinP};
///
/// const OUT: f32 = f32::NEG_INFINITY;
/// let mut scores = [0.5f32, 0.1, 0.3, 0.1].map(f32::ln);
/// MinP::new(0.5)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [0.5f32.ln(), OUT, 0.3f32.ln(), OUT]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MinP {
    p: f32,
    min_tokens_to_keep: usize,
}

impl MinP {
    /// Keeps tokens above a share `p` in `[0, 1]` of the highest probability.
    ///
    /// # Errors
    /// When `p` is outside.
    pub fn new(p: f64) -> Result<Self> {
        if (0.0..=1.0).contains(&p) {
            return Ok(Self { p: p as f32, min_tokens_to_keep: 1 });
        }
        Err(Error::parameter("min_p", "between 0 and 1", p))
    }

    /// Keeps the `n` likeliest tokens in any case, of equals those that `torch.topk` takes. As in HF,
    /// tokens whose probability is 0 in fp32 and banned ones are equals, so that fewer may be left.
    ///
    /// # Errors
    /// When it is 0.
    pub fn min_tokens_to_keep(self, n: usize) -> Result<Self> {
        Ok(Self { min_tokens_to_keep: at_least_one(n)?, ..self })
    }
}

impl Warp for MinP {
    fn warp(&self, candidates: &mut Candidates) {
        candidates.softmax();
        let highest = candidates.probs().iter().copied().fold(0.0, f32::max);
        candidates.keep_likeliest(self.p * highest, self.min_tokens_to_keep);
    }
}

processor!(MinP, "MinPLogitsWarper", MinP);
