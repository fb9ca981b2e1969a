//! Marks a text while it is written.

use std::fmt;

use super::SeedingScheme;
use super::greenlist::{Greenlist, WatermarkingConfig};
use crate::error::finite;
use crate::{Context, Error, LogitsProcessor, Result, Stage, scratch};

/// How many of the likeliest tokens the self-hash scheme looks at, as in HF.
const CANDIDATES: usize = 40;

/// Prefers "green" tokens, a part of the vocabulary that changes with the tokens before
/// (`WatermarkLogitsProcessor`; Kirchenbauer et al.,
/// [On the Reliability of Watermarks](https://arxiv.org/abs/2306.04634)).
///
/// A reader with the same settings finds too many green tokens for chance, with a
/// [`WatermarkDetector`](super::WatermarkDetector). The green lists are torch's CPU permutations,
/// so they are those of transformers on a CPU. The row is taken with its padding; while it is
/// shorter than the context width nothing happens.
///
/// In the self-hash scheme only the 40 likeliest tokens can be green. Their order decides nothing,
/// but which tokens they are does, so a tie at the 40th place may be resolved differently.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, Watermark, WatermarkingConfig};
///
/// let watermark = Watermark::new(&WatermarkingConfig::default(), 20)?;
/// let mut scores = [0.0; 20];
/// watermark.process(&Context::new(&[10], 1), &mut scores)?;
/// let green: Vec<_> = (0..20).filter(|&it| scores[it] == 2.0).collect();
/// assert_eq!(green, [1, 4, 9, 12, 15]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Clone)]
pub struct Watermark {
    greenlist: Greenlist,
    bias: f32,
}

impl Watermark {
    /// A watermark over a vocabulary: HF takes its size from the model's config.
    ///
    /// # Errors
    /// When the ratio is not above 0 and below 1, the context width is 0, or the bias not finite.
    pub fn new(config: &WatermarkingConfig, vocab_size: usize) -> Result<Self> {
        let bias = finite("bias", config.bias)?;
        Ok(Self { greenlist: Greenlist::new(config, vocab_size)?, bias })
    }

    fn favour(&self, token: u32, scores: &mut [f32]) -> Result<()> {
        let vocabulary = scores.len();
        let score = scores
            .get_mut(token as usize)
            .ok_or_else(|| Error::beyond_vocabulary("vocab_size", token, vocabulary))?;
        *score += self.bias;
        Ok(())
    }

    fn left_hash(&self, so_far: &[u32], scores: &mut [f32]) -> Result<()> {
        let seed = self.greenlist.seed(so_far)?;
        scratch::with(&scratch::IDS, |green| {
            self.greenlist.green(seed, green);
            green.iter().try_for_each(|&token| self.favour(token, scores))
        })
    }

    fn self_hash(&self, so_far: &[u32], scores: &mut [f32]) -> Result<()> {
        let width = self.greenlist.config.context_width;
        let mut window = so_far[so_far.len() + 1 - width..].to_vec();
        for token in likeliest(scores, CANDIDATES) {
            window.push(token);
            if self.greenlist.is_green(self.greenlist.seed(&window)?, token) {
                self.favour(token, scores)?;
            }
            window.pop();
        }
        Ok(())
    }
}

impl LogitsProcessor for Watermark {
    fn name(&self) -> &'static str {
        "WatermarkLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::Watermark
    }

    /// # Errors
    /// When the vocabulary of the settings is larger than the scores.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        if context.tokens.len() < self.greenlist.config.context_width {
            return Ok(());
        }
        match self.greenlist.config.seeding_scheme {
            SeedingScheme::LeftHash => self.left_hash(context.tokens, scores),
            SeedingScheme::SelfHash => self.self_hash(context.tokens, scores),
        }
    }
}

impl fmt::Debug for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watermark").field(&self.greenlist).finish()
    }
}

/// The `n` tokens with the highest scores, in no order.
///
/// It is one pass that compares with the `n`-th best so far, and now and then finds out again which
/// that is.
fn likeliest(scores: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(2 * n);
    let mut least = f32::NEG_INFINITY;
    for (token, &score) in (0..).zip(scores) {
        if score > least || best.len() < n {
            best.push(token);
            if best.len() == 2 * n {
                least = keep_best(scores, n, &mut best);
            }
        }
    }
    if best.len() > n {
        keep_best(scores, n, &mut best);
    }
    best
}

/// Keeps the `n` best of the tokens, which are more, and returns the lowest score kept.
fn keep_best(scores: &[f32], n: usize, tokens: &mut Vec<u32>) -> f32 {
    let by_score = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]);
    tokens.select_nth_unstable_by(n - 1, by_score);
    tokens.truncate(n);
    scores[tokens[n - 1] as usize]
}
