//! Measures the mark in a text.

use super::tournament::{SynthIdTextWatermarkingConfig, Tournament, accumulate};
use crate::Result;

/// The coin flips of a text: for each judged token, one 0 or 1 per layer of the tournament.
///
/// ```
/// use mlxgk_logits_processors::{SynthIdTextDetector, SynthIdTextWatermarkingConfig};
///
/// let config = SynthIdTextWatermarkingConfig::new(3, vec![654, 400, 836]);
/// let flips = SynthIdTextDetector::new(&config)?.g_values(&[5, 1, 4, 1]);
/// // The third and the fourth token have the two before them that it takes to judge them.
/// assert_eq!(flips.rows().len(), 2);
/// assert!(flips.rows().all(|it| it.len() == 3 && it.iter().all(|flip| *flip <= 1)));
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GValues {
    /// The flips, token by token.
    values: Vec<u8>,
    depth: usize,
}

impl GValues {
    /// The flips of one token after the other.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        // A watermark without keys has rows of no flips, which chunks cannot express.
        self.values.chunks_exact(self.depth.max(1))
    }
}

/// Reads the flips of a [`SynthIdText`](super::SynthIdText) watermark back from a text, and
/// averages them (`SynthIDTextWatermarkLogitsProcessor`'s own methods in HF, and the mean and
/// weighted-mean scores of the paper's code).
///
/// Unmarked text has a mean of about 0.5, marked text more. The first `ngram_len - 1` tokens of the
/// text have no full context and are not judged.
///
/// ```
/// use mlxgk_logits_processors::{SynthIdTextDetector, SynthIdTextWatermarkingConfig};
///
/// let config = SynthIdTextWatermarkingConfig::new(3, vec![654, 400, 836]);
/// let detector = SynthIdTextDetector::new(&config)?;
/// let text = [5, 1, 4, 1, 5, 9, 2, 6];
/// let g_values = detector.g_values(&text);
/// assert_eq!(g_values.rows().len(), 6);
/// let mask = detector.mask(&text, None);
/// assert!((0.0..=1.0).contains(&detector.mean_score(&g_values, &mask).unwrap()));
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SynthIdTextDetector(Tournament);

impl SynthIdTextDetector {
    /// A detector for the settings with which the text was written.
    ///
    /// # Errors
    /// When `ngram_len` is 0, or the table's size 0 or above 2^24.
    pub fn new(config: &SynthIdTextWatermarkingConfig) -> Result<Self> {
        Tournament::new(config).map(Self)
    }

    /// The flips of every token with a full context (HF's `compute_g_values`).
    pub fn g_values(&self, tokens: &[u32]) -> GValues {
        let keys = &self.0.config.keys;
        let first = self.0.config.ngram_len - 1;
        let mut values = Vec::new();
        for at in first..tokens.len() {
            let ngram = accumulate(self.0.context_hash(tokens, at), tokens[at].into());
            values.extend(keys.iter().map(|&key| self.0.flip(ngram, key)));
        }
        GValues { values, depth: keys.len() }
    }

    /// For every token with a full context, whether that context is new
    /// (HF's `compute_context_repetition_mask`): the watermark left the others unmarked.
    pub fn context_repetition_mask(&self, tokens: &[u32]) -> Vec<bool> {
        let first = self.0.config.ngram_len - 1;
        let hashes: Vec<u64> =
            (first..tokens.len()).map(|at| self.0.context_hash(tokens, at)).collect();
        (1..=hashes.len()).map(|end| !self.0.is_repeated(&hashes[..end])).collect()
    }

    /// The tokens to judge: those with a new context that precede the first end token.
    pub fn mask(&self, tokens: &[u32], eos_token_id: Option<u32>) -> Vec<bool> {
        let end = tokens.iter().position(|&it| Some(it) == eos_token_id).unwrap_or(tokens.len());
        let first = self.0.config.ngram_len - 1;
        let mut mask = self.context_repetition_mask(tokens);
        mask.iter_mut().skip(end.saturating_sub(first)).for_each(|it| *it = false);
        mask
    }

    /// The mean of the flips of the judged tokens; `None` when there is none.
    pub fn mean_score(&self, g_values: &GValues, mask: &[bool]) -> Option<f64> {
        weighted_mean(g_values, mask, &vec![1.0; g_values.depth])
    }

    /// The mean with weights that fall from 10 in the first layer to 1 in the last, where a
    /// tournament leaves its mark most clearly; `None` when no token is judged.
    pub fn weighted_mean_score(&self, g_values: &GValues, mask: &[bool]) -> Option<f64> {
        let steps = g_values.depth.saturating_sub(1).max(1) as f64;
        let weights: Vec<f64> =
            (0..g_values.depth).map(|layer| 10.0 - 9.0 * layer as f64 / steps).collect();
        weighted_mean(g_values, mask, &weights)
    }

    /// The mean flip to expect from a marked text over one layer, where the model's distribution
    /// was uniform over `vocab_size` tokens (HF's `expected_mean_g_value`).
    pub fn expected_mean_g_value(vocab_size: usize) -> f64 {
        0.5 + 0.25 * (1.0 - 1.0 / vocab_size as f64)
    }
}

fn weighted_mean(g_values: &GValues, mask: &[bool], weights: &[f64]) -> Option<f64> {
    let total: f64 = weights.iter().sum();
    let judged = g_values.rows().zip(mask).filter(|(_, judged)| **judged);
    let (mut sum, mut count) = (0.0, 0usize);
    for (row, _) in judged {
        sum += row.iter().zip(weights).map(|(&it, weight)| f64::from(it) * weight).sum::<f64>();
        count += 1;
    }
    (count > 0 && total > 0.0).then(|| sum / total / count as f64)
}
