//! Marks a text while it is written.

use std::fmt;

use mlxgk_torch::{RowSum, ln, softmax};

use super::tournament::{SynthIdTextWatermarkingConfig, Tournament, accumulate};
use crate::{Context, Error, ErrorKind, LogitsProcessor, Result, Stage, scratch};

/// Bends a distribution towards tokens that win a keyed tournament of coin flips
/// (`SynthIDTextWatermarkLogitsProcessor`; Dathathri et al.,
/// [Scalable watermarking](https://www.nature.com/articles/s41586-024-08025-4)).
///
/// The result is the logarithm of the new probabilities. Averaged over keys the distribution is
/// unchanged. As in HF the flips depend on the generated tokens only, with zeros before them, and a
/// context that occurred before stays unmarked. Unlike HF's, whose state does not follow beams and
/// drafts, this is a function of the row.
///
/// Banned tokens get the smallest fp32 number, not minus infinity, as in HF: they keep the
/// probability 0. Only tokens of positive probability are hashed, so it is cheap after a top-k.
///
/// ```
/// use mlxgk_logits_processors::{
///     Context, LogitsProcessor, SynthIdText, SynthIdTextWatermarkingConfig,
/// };
///
/// let config = SynthIdTextWatermarkingConfig::new(5, vec![654, 400, 836]);
/// let mut scores = [0.0; 4];
/// SynthIdText::new(&config)?.process(&Context::new(&[3, 1, 2], 1), &mut scores)?;
/// let sum: f32 = scores.iter().map(|it| it.exp()).sum();
/// assert!((sum - 1.0).abs() < 1e-5);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Clone)]
pub struct SynthIdText(Tournament);

impl SynthIdText {
    /// A watermark with these settings.
    ///
    /// # Errors
    /// When `ngram_len` is 0, the table's size 0 or above 2^24, or there are more than 1024 keys.
    pub fn new(config: &SynthIdTextWatermarkingConfig) -> Result<Self> {
        Tournament::new(config).map(Self)
    }

    /// Whether the context at this step is one that HF would have seen at an earlier step.
    fn is_repeated(&self, generated: &[u32]) -> bool {
        let config = &self.0.config;
        let first = if config.skip_first_ngram_calls { config.ngram_len - 1 } else { 0 };
        let oldest = generated.len().saturating_sub(config.context_history_size).max(first);
        scratch::with(&scratch::HASHES, |hashes| {
            hashes.extend((oldest..=generated.len()).map(|it| self.0.context_hash(generated, it)));
            // `oldest` cuts the history where it is full; before that, zeros are in it.
            self.0.is_repeated(hashes)
        })
    }

    /// The tournament: scores to the logarithms of the reweighted probabilities.
    fn compete(&self, context_hash: u64, scores: &mut [f32]) -> Result<()> {
        if mlxgk_torch::max(scores) == f32::NEG_INFINITY {
            return Err(Error::new(ErrorKind::NoTokenAllowed, "every token is banned"));
        }
        scratch::with(&scratch::IDS, |alive| {
            scratch::with(&scratch::SCORES, |probs| {
                softmax(scores, probs);
                alive.extend((0..).zip(&*probs).filter(|it| *it.1 > 0.0).map(|it| it.0));
                probs.retain(|&it| it > 0.0);
                scratch::with(&scratch::HASHES, |hashes| {
                    let ngram = |&token: &u32| accumulate(context_hash, token.into());
                    hashes.extend(alive.iter().map(ngram));
                    for &key in &self.0.config.keys {
                        self.layer(key, scores.len(), alive, hashes, probs);
                    }
                });
                scores.fill(f32::MIN);
                for (&token, &prob) in alive.iter().zip(probs.iter()) {
                    let score = ln(prob);
                    if score.is_finite() {
                        scores[token as usize] = score;
                    }
                }
            });
        });
        Ok(())
    }

    /// One layer: a token that flips 1 gains what the mass of the others allows.
    fn layer(&self, key: i64, len: usize, alive: &[u32], hashes: &[u64], probs: &mut [f32]) {
        scratch::with(&scratch::FLIPS, |flips| {
            flips.extend(hashes.iter().map(|&hash| f32::from(self.0.flip(hash, key))));
            let mut mass = RowSum::new(len);
            for ((&token, &prob), &flip) in alive.iter().zip(&*probs).zip(&*flips) {
                mass.add(token as usize, flip * prob);
            }
            let mass = mass.finish();
            for (prob, &flip) in probs.iter_mut().zip(&*flips) {
                *prob *= 1.0 + flip - mass;
            }
        });
    }
}

impl LogitsProcessor for SynthIdText {
    fn name(&self) -> &'static str {
        "SynthIDTextWatermarkLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::Watermark
    }

    /// # Errors
    /// When every token is banned.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let generated = context.generated();
        let config = &self.0.config;
        if config.debug_mode {
            scores.fill(1.0);
        }
        let too_early = config.skip_first_ngram_calls && generated.len() + 1 < config.ngram_len;
        if too_early || self.is_repeated(generated) {
            return Ok(());
        }
        self.compete(self.0.context_hash(generated, generated.len()), scores)
    }
}

impl fmt::Debug for SynthIdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SynthIdText").field(&self.0.config).finish()
    }
}
