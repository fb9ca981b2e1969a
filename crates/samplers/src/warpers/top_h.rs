//! Top-H: as many tokens as an entropy budget allows.

use mlxgk_logits_processors::{Error, Result};
use mlxgk_torch::{Places, SparseRow, ln};

use super::{Warp, processor};
use crate::candidates::Candidates;

/// Keeps the most likely tokens while their share of the entropy lasts (HF's `TopHLogitsWarper`;
/// Potraghloo et al., 2025).
///
/// Only the 100 most likely tokens are looked at: their entropy is the budget, of which a share
/// `h` may be spent. The most likely token is always kept.
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, TopH};
///
/// const OUT: f32 = f32::NEG_INFINITY;
/// let mut scores = [0.5f32, 0.1, 0.3, 0.1].map(f32::ln);
/// TopH::new(0.4)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [0.5f32.ln(), OUT, OUT, OUT]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
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
        Err(Error::parameter("top_h", "above 0 and at most 1", h))
    }
}

impl Warp for TopH {
    fn warp(&self, candidates: &mut Candidates) {
        let considered = Self::CONSIDERED.min(candidates.vocab());
        candidates.rank_highest(considered);
        let (mut logits, mut n) = ([0.0; Self::CONSIDERED], 0);
        for (logit, score) in logits.iter_mut().zip(candidates.ranked_scores()) {
            *logit = score;
            n += 1;
        }
        let (mut probs, mut terms) = ([0.0; Self::CONSIDERED], [0.0; Self::CONSIDERED]);
        let row = SparseRow { len: considered, places: Places::From(0) };
        let entropy = row.categorical(&logits[..n], logits[0], &mut probs[..n], &mut terms[..n]);
        let budget = entropy * self.0;
        let mut spent = 0.0;
        let affordable = probs[..n].iter().take_while(|&&prob| {
            spent += f64::from(-prob * ln(prob));
            spent as f32 <= budget
        });
        let kept = affordable.count().max(1);
        let cut = logits[kept - 1];
        if candidates.ranked_scores().nth(kept) == Some(cut) {
            candidates.keep_top(kept, considered);
        } else {
            candidates.keep(move |score, _| score >= cut);
        }
    }
}

processor!(TopH, "TopHLogitsWarper", TopH);
