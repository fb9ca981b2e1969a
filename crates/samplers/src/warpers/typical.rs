//! Locally typical sampling: tokens about as surprising as the distribution expects.

use mlxgk_logits_processors::{Error, Result};
use mlxgk_torch::ln;

use super::{Warp, at_least_one, processor};
use crate::candidates::Candidates;

/// Keeps the tokens whose surprise is nearest to the entropy, up to a given probability mass (HF's
/// `TypicalLogitsWarper`; Meister et al., 2022).
///
/// The token that carries the sum across the mass is kept, and all that are as typical as it.
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, Typical};
///
/// const OUT: f32 = f32::NEG_INFINITY;
/// let mut scores = [0.5f32, 0.1, 0.3, 0.1].map(f32::ln);
/// Typical::new(0.3)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [OUT, OUT, 0.3f32.ln(), OUT]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Typical {
    mass: f32,
    min_tokens_to_keep: usize,
}

impl Typical {
    /// Keeps a mass strictly between 0 and 1.
    ///
    /// # Errors
    /// When it is not.
    pub fn new(mass: f64) -> Result<Self> {
        if mass > 0.0 && mass < 1.0 {
            return Ok(Self { mass: mass as f32, min_tokens_to_keep: 1 });
        }
        Err(Error::parameter("typical_p", "above 0 and below 1", mass))
    }

    /// Keeps at least this many of the most typical tokens.
    ///
    /// # Errors
    /// When it is 0.
    pub fn min_tokens_to_keep(self, n: usize) -> Result<Self> {
        Ok(Self { min_tokens_to_keep: at_least_one(n)?, ..self })
    }
}

impl Warp for Typical {
    fn warp(&self, candidates: &mut Candidates) {
        candidates.weigh();
        let max = candidates.max();
        let log_sum = ln(candidates.weight());
        let log_prob = move |score: f32| (score - max) - log_sum;
        let entropy = candidates.summed_entropy(log_prob);
        let strangeness = move |score: f32| (-log_prob(score) - entropy).abs();

        let last = candidates.crossing(strangeness, (0.0, RANGE), false, self.mass);
        // Where the mass is not reached, HF's last token is a banned one, infinitely strange.
        let limit = last.map_or(f32::INFINITY, |last| last.key);
        let kept = scores_within(candidates.scores(), strangeness, limit);
        if kept >= self.min_tokens_to_keep {
            candidates.keep(move |score, _| strangeness(score) <= limit);
        } else {
            candidates.keep_first(self.min_tokens_to_keep, strangeness);
        }
    }
}

fn scores_within(scores: &[f32], key: impl Fn(f32) -> f32, limit: f32) -> usize {
    scores.iter().filter(|&&score| key(score) <= limit).count()
}

/// Up to which strangeness, in nats, the crossing is looked for first.
const RANGE: f32 = 24.0;

processor!(Typical, "TypicalLogitsWarper", Typical);
