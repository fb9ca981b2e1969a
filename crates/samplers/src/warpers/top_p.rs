//! Top-p, or nucleus sampling: the smallest set that holds most of the probability.

use mlxgk_logits_processors::{Error, Result};

use super::{Warp, at_least_one, processor};
use crate::candidates::Candidates;

/// Keeps the most likely tokens that together hold a share `p` of the probability (HF's
/// `TopPLogitsWarper`; Holtzman et al., 2020).
///
/// HF adds up the probabilities from the least likely on and removes tokens while the sum is at
/// most `1 - p`; the softmax runs over the sorted scores, the running sum in fp64, the comparison
/// in fp32. Among equal scores those survive that `torch.sort` puts last.
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, TopP};
///
/// const OUT: f32 = f32::NEG_INFINITY;
/// let mut scores = [0.5f32, 0.1, 0.3, 0.1].map(f32::ln);
/// TopP::new(0.8)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [0.5f32.ln(), OUT, 0.3f32.ln(), OUT]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopP {
    removable: f32,
    min_tokens_to_keep: usize,
}

impl TopP {
    /// Keeps a share `p` in `[0, 1]`; 0 keeps one token.
    ///
    /// # Errors
    /// When `p` is outside.
    pub fn new(p: f64) -> Result<Self> {
        if (0.0..=1.0).contains(&p) {
            return Ok(Self { removable: (1.0 - p) as f32, min_tokens_to_keep: 1 });
        }
        Err(Error::parameter("top_p", "between 0 and 1", p))
    }

    /// Keeps at least this many tokens.
    ///
    /// # Errors
    /// When it is 0.
    pub fn min_tokens_to_keep(self, n: usize) -> Result<Self> {
        Ok(Self { min_tokens_to_keep: at_least_one(n)?, ..self })
    }

    /// The probability that is removed from the least likely tokens, 1 - p, and how many tokens are kept
    /// in any case.
    pub fn limits(self) -> (f32, usize) {
        (self.removable, self.min_tokens_to_keep)
    }
}

impl Warp for TopP {
    fn warp(&self, candidates: &mut Candidates) {
        candidates.weigh();
        let max = candidates.max();
        let mark = self.removable.next_up();
        let crossing = candidates.crossing(|score| score, (max - RANGE, max), true, mark);
        match crossing {
            Some(it) if candidates.len() - it.rank >= self.min_tokens_to_keep => {
                if it.is_tied {
                    let banned = candidates.vocab() - candidates.len();
                    candidates.keep_sorted_from(banned + it.rank);
                } else {
                    candidates.keep(move |score, _| score >= it.key);
                }
            }
            _ => candidates.keep_highest(self.min_tokens_to_keep),
        }
    }
}

/// How far below the highest score, in nats, the cut is looked for first.
const RANGE: f32 = 24.0;

processor!(TopP, "TopPLogitsWarper", TopP);
