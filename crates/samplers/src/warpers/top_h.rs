//! Top-H: as many tokens as an entropy budget allows.

use mlxgk_logits_processors::Result;

use super::{Warp, parameter, processor};
use crate::candidates::Candidates;
use crate::torch_math::{categorical, ln};

/// Keeps the most likely tokens while their share of the entropy lasts (HF's `TopHLogitsWarper`;
/// Potraghloo et al., 2025).
///
/// Only the 100 most likely tokens are looked at: their entropy is the budget, of which a share
/// `h` may be spent. The most likely token is always kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopH(f32);

impl TopH {
    /// How many tokens are considered.
    pub const CONSIDERED: usize = 100;

    /// Spends a share `h` in `(0, 1]` of the entropy.
    ///
    /// # Errors
    /// When `h` is outside.
    pub fn new(h: f64) -> Result<Self> {
        if h > 0.0 && h <= 1.0 {
            return Ok(Self(h as f32));
        }
        Err(parameter("top_h", "in the range (0, 1]", h))
    }
}

impl Warp for TopH {
    fn warp(&self, candidates: &mut Candidates) {
        let kth = candidates.kth_highest(Self::CONSIDERED);
        candidates.keep(|it| it.score >= kth);
        // Negated keys put the highest score first, and the lower id before its equals.
        candidates.rank(|score| -score);
        let considered = Self::CONSIDERED.min(candidates.vocab());
        let n = considered.min(candidates.len());
        let (mut logits, mut probs) = ([0.0; Self::CONSIDERED], [0.0; Self::CONSIDERED]);
        for (logit, ranked) in logits.iter_mut().zip(candidates.ranked()).take(n) {
            *logit = candidates.scores()[ranked.place()];
        }
        let entropy = categorical(&logits[..n], considered, |rank| rank, &mut probs[..n]);
        let budget = entropy * self.0;
        let mut spent = 0.0;
        let affordable = probs[..n].iter().take_while(|&&prob| {
            spent += f64::from(-prob * ln(prob));
            spent as f32 <= budget
        });
        let kept = affordable.count().max(1);
        candidates.keep_ranks(0..kept);
    }
}

processor!(TopH, "TopHLogitsWarper", TopH);
