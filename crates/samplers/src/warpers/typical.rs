//! Locally typical sampling: tokens about as surprising as the distribution expects.

use mlxgk_logits_processors::Result;

use super::{Warp, at_least_one, parameter, processor};
use crate::candidates::Candidates;
use crate::torch_math::{CascadeSum, LaneSum, exp, exp_rounded, ln};

/// Keeps the tokens whose surprise is nearest to the entropy, up to a given probability mass (HF's
/// `TypicalLogitsWarper`; Meister et al., 2022).
///
/// The token that carries the sum across the mass is kept, and all that are as typical as it.
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
        Err(parameter("typical_p", "a float > 0 and < 1", mass))
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
        candidates.drop_banned();
        let (vocab, n, max) = (candidates.vocab(), candidates.len(), candidates.max());
        let mut sum = LaneSum::new(vocab);
        for (at, &score) in candidates.scores().iter().enumerate() {
            sum.add(candidates.id(at), exp(score - max));
        }
        let log_sum = ln(sum.finish());
        let surprise = |score: f32| -(score - max - log_sum);
        let mut negated = CascadeSum::new(vocab);
        for (at, &score) in candidates.scores().iter().enumerate() {
            let log_prob = -surprise(score);
            negated.add(candidates.id(at), log_prob * exp_rounded(log_prob));
        }
        let entropy = -negated.finish();
        let strangeness = |score: f32| (surprise(score) - entropy).abs();

        candidates.rank(strangeness);
        let score_at = |rank: usize| candidates.scores()[candidates.ranked()[rank].place()];
        let mut sum = LaneSum::new(vocab);
        for rank in 0..n {
            sum.add(rank, exp(score_at(rank) - max));
        }
        let scale = 1.0 / sum.finish();
        let mut mass = 0.0;
        let last = (0..n).find(|&rank| {
            mass += f64::from(exp(score_at(rank) - max) * scale);
            mass as f32 >= self.mass
        });
        // Where the mass is never reached, HF's last token is a banned one, infinitely strange.
        let Some(last) = last else { return };
        let limit = strangeness(score_at(last));
        let tied = (last..n).take_while(|&rank| strangeness(score_at(rank)) == limit).count();
        let kept = (last + tied).max(self.min_tokens_to_keep).min(n);
        candidates.keep_ranks(0..kept);
    }
}

processor!(Typical, "TypicalLogitsWarper", Typical);
