//! XTC: now and then, exclude the top choices.

use mlxgk_logits_processors::{Error, Result};

use super::at_least_one;
use crate::candidates::Candidates;

/// With a given probability, removes all tokens above a threshold but the least likely of them,
/// and what ties with it (XTC, "exclude top choices": p-e-w, 2024; as in llama.cpp and mlx-lm).
///
/// It flips one coin per step, so it is not a function of the scores alone and runs only in a
/// [`SamplerChain`](crate::SamplerChain), with the row's generator.
///
/// ```
/// use mlxgk_samplers::{FastRng, SamplerChain, SamplerState, Warper, Xtc};
///
/// let mut sampler = SamplerChain::new(vec![Warper::Xtc(Xtc::new(1.0, 0.15)?)])?.sampler();
/// let scores = [0.5f32, 0.1, 0.3, 0.1].map(f32::ln);
/// let left =
///     sampler.distribution(&scores, &SamplerState::default(), &mut FastRng::new(0, 0))?;
/// assert_eq!(left.iter().map(|(id, _)| id).collect::<Vec<_>>(), [1, 2, 3]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Xtc {
    probability: f32,
    threshold: f32,
    min_tokens_to_keep: usize,
    spared: Vec<u32>,
}

impl Xtc {
    /// Acts with a `probability` in `[0, 1]`, on tokens at least as likely as a `threshold` in
    /// `[0, 0.5]`; above one half, no two tokens could reach it.
    ///
    /// # Errors
    /// When either is outside.
    pub fn new(probability: f64, threshold: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&probability) {
            return Err(Error::parameter("xtc_probability", "between 0 and 1", probability));
        }
        if !(0.0..=0.5).contains(&threshold) {
            return Err(Error::parameter("xtc_threshold", "between 0 and 0.5", threshold));
        }
        Ok(Self {
            probability: probability as f32,
            threshold: threshold as f32,
            min_tokens_to_keep: 1,
            spared: Vec::new(),
        })
    }

    /// Acts only where at least this many tokens remain.
    ///
    /// # Errors
    /// When it is 0.
    pub fn min_tokens_to_keep(self, n: usize) -> Result<Self> {
        Ok(Self { min_tokens_to_keep: at_least_one(n)?, ..self })
    }

    /// Never removes these tokens, such as the end of the text or a line break (mlx-lm's
    /// `xtc_special_tokens`).
    pub fn spare(self, tokens: impl Into<Vec<u32>>) -> Self {
        Self { spared: tokens.into(), ..self }
    }

    /// Whether a coin has to be flipped at all.
    pub(crate) fn is_active(&self, candidates: &Candidates) -> bool {
        self.probability > 0.0 && candidates.len() > 1
    }

    /// Acts if the coin, uniform in `[0, 1)`, falls below the probability.
    pub(crate) fn warp(&self, candidates: &mut Candidates, coin: f32) {
        if coin >= self.probability {
            return;
        }
        candidates.drop_banned();
        candidates.softmax();
        candidates.rank(|score| -score);
        let above = candidates.ranked_probs().take_while(|&p| p >= self.threshold).count();
        let Some(least) = candidates.ranked_scores().take(above).last() else { return };
        let removed = candidates.ranked_scores().take_while(|&score| score > least).count();
        if candidates.len() - removed >= self.min_tokens_to_keep {
            candidates.keep_ranked(|rank, id| rank >= removed || self.spared.contains(&id));
        }
    }
}
