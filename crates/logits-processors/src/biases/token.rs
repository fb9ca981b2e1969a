//! Biases on single tokens.

use std::collections::BTreeMap;
use std::fmt;

use super::bias;
use crate::mask::in_vocabulary;
use crate::shown::Shown;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Adds a bias to tokens at every step: OpenAI's `logit_bias`.
///
/// OpenAI limits a bias to -100..=100, where the ends ban and force; here any number will do, and
/// minus infinity bans. In transformers this is a [sequence bias](super::SequenceBias) on
/// sequences of one token.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, TokenBias};
///
/// let mut scores = [0.0; 3];
/// TokenBias::new([(0, 1.5), (2, f64::NEG_INFINITY)])?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [1.5, 0.0, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct TokenBias(Vec<(u32, f32)>);

impl TokenBias {
    /// Biases by token; of a token given twice the last bias counts.
    ///
    /// # Errors
    /// When a bias is NaN or plus infinity.
    pub fn new(biases: impl IntoIterator<Item = (u32, f64)>) -> Result<Self> {
        let biases = biases.into_iter().map(|(token, it)| Ok((token, bias("logit_bias", it)?)));
        let biases: BTreeMap<u32, f32> = biases.collect::<Result<_>>()?;
        Ok(Self(biases.into_iter().collect()))
    }
}

impl LogitsProcessor for TokenBias {
    fn name(&self) -> &'static str {
        "TokenBias"
    }

    fn stage(&self) -> Stage {
        Stage::SequenceBias
    }

    /// # Errors
    /// When a biased token is beyond the vocabulary.
    fn process(&self, _context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        if let Some(&(largest, _)) = self.0.last() {
            in_vocabulary(&[largest], scores.len(), "logit_bias")?;
        }
        for &(token, bias) in &self.0 {
            scores[token as usize] += bias;
        }
        Ok(())
    }
}

impl fmt::Debug for TokenBias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenBias").field(&Shown(&self.0)).finish()
    }
}
