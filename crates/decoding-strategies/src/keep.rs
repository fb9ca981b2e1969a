//! What is kept of a step besides its token: HF's `scores` and `logits`, and log-probabilities.

use mlxgk_logits_processors::log_softmax;

use crate::Result;

/// What to keep of each step.
///
/// Scores and logits are a whole vocabulary per token: 600 kB each for a model of 150,000 tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// The scores that the token was chosen from, behind processors and warpers (HF `output_scores`).
    pub scores: bool,
    /// The model's own fp32 logits (HF `output_logits`).
    pub logits: bool,
    /// Log-probabilities of the token and of this many of the likeliest.
    pub logprobs: Option<usize>,
}

/// How likely the model itself held a token, whatever processors and warpers made of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub token: u32,
    /// Its log-probability: natural logarithm, fp32.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, best first, ties by id.
    pub top: Vec<(u32, f32)>,
}

/// What was kept of one row, an entry per token; empty where it was not asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Processed scores, `-inf` for what was banned or cut.
    pub scores: Vec<Vec<f32>>,
    /// The model's logits.
    pub logits: Vec<Vec<f32>>,
    /// Log-probabilities under the model's logits.
    pub logprobs: Vec<TokenLogprobs>,
}

impl Kept {
    /// Files away a step: the chosen token, the model's logits, and what was chosen from.
    pub(crate) fn push(
        &mut self,
        keep: Keep,
        token: u32,
        logits: &[f32],
        scores: &[f32],
    ) -> Result<()> {
        if keep.scores {
            self.scores.push(scores.to_vec());
        }
        if keep.logits {
            self.logits.push(logits.to_vec());
        }
        if let Some(count) = keep.logprobs {
            self.logprobs.push(TokenLogprobs::of(token, logits, count)?);
        }
        Ok(())
    }
}

impl TokenLogprobs {
    fn of(token: u32, logits: &[f32], count: usize) -> Result<Self> {
        let mut logprobs = logits.to_vec();
        log_softmax(&mut logprobs)?;
        let mut ids: Vec<u32> = (0..logprobs.len() as u32).collect();
        let better = |a: &u32, b: &u32| {
            logprobs[*b as usize].total_cmp(&logprobs[*a as usize]).then(a.cmp(b))
        };
        let count = count.min(ids.len());
        if count > 0 && count < ids.len() {
            ids.select_nth_unstable_by(count, better);
        }
        ids.truncate(count);
        ids.sort_unstable_by(better);
        let top = ids.into_iter().map(|id| (id, logprobs[id as usize])).collect();
        Ok(Self { token, logprob: logprobs[token as usize], top })
    }
}
