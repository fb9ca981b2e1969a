//! Finds the mark in a text.

use std::collections::HashMap;

use super::SeedingScheme;
use super::greenlist::{Greenlist, WatermarkingConfig};
use crate::{Error, ErrorKind, Result};

/// Tells whether a text carries a [`Watermark`](super::Watermark), from the number of its green
/// tokens (`WatermarkDetector`).
///
/// ```
/// use mlxgk_logits_processors::{WatermarkDetector, WatermarkingConfig};
///
/// let detector = WatermarkDetector::new(&WatermarkingConfig::default(), 20)?;
/// // 15 is green after 10, 11 is not green after 15.
/// let detection = detector.detect(&[10, 15, 11], 3.0)?;
/// assert_eq!((detection.num_tokens_scored, detection.num_green_tokens), (2, 1));
/// assert!(!detection.prediction);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct WatermarkDetector {
    greenlist: Greenlist,
    bos_token_id: Option<u32>,
    ignore_repeated_ngrams: bool,
}

/// What a [`WatermarkDetector`] found in one text (`WatermarkDetectorOutput`).
///
/// ```
/// use mlxgk_logits_processors::{WatermarkDetector, WatermarkingConfig};
///
/// let detector = WatermarkDetector::new(&WatermarkingConfig::default(), 20)?;
/// let detection = detector.detect(&[10, 15, 11], 3.0)?;
/// // One of two is green, where chance expects a quarter: (1 - 0.5) / sqrt(2 · 0.25 · 0.75).
/// assert_eq!(detection.green_fraction, 0.5);
/// assert!((detection.z_score - 0.8165).abs() < 1e-4);
/// assert!((detection.p_value + detection.confidence - 1.0).abs() < 1e-12);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WatermarkDetection {
    /// How many tokens had enough tokens before them to be judged.
    pub num_tokens_scored: usize,
    /// How many of them were green.
    pub num_green_tokens: usize,
    /// The share of green ones.
    pub green_fraction: f64,
    /// How many standard deviations the green ones are above the number expected by chance.
    pub z_score: f64,
    /// How likely that many green tokens are by chance.
    pub p_value: f64,
    /// Whether the z-score is above the threshold.
    pub prediction: bool,
    /// One less the p-value.
    pub confidence: f64,
}

impl WatermarkDetector {
    /// A detector for the settings and the vocabulary with which the text was written.
    ///
    /// # Errors
    /// When the ratio is not above 0 and below 1, or the context width is 0.
    pub fn new(config: &WatermarkingConfig, vocab_size: usize) -> Result<Self> {
        Ok(Self {
            greenlist: Greenlist::new(config, vocab_size)?,
            bos_token_id: None,
            ignore_repeated_ngrams: false,
        })
    }

    /// Leaves out this token where a text begins with it, because the model did not choose it.
    pub fn skipping_bos(self, bos_token_id: u32) -> Self {
        Self { bos_token_id: Some(bos_token_id), ..self }
    }

    /// Counts each distinct n-gram once, against texts that repeat themselves.
    pub fn ignoring_repeated_ngrams(self) -> Self {
        Self { ignore_repeated_ngrams: true, ..self }
    }

    /// Judges a text, best without its prompt. HF's threshold is 3.
    ///
    /// # Errors
    /// When the text is too short to hold one token that can be judged.
    pub fn detect(&self, tokens: &[u32], z_threshold: f64) -> Result<WatermarkDetection> {
        let tokens = match tokens.split_first() {
            Some((first, rest)) if Some(*first) == self.bos_token_id => rest,
            _ => tokens,
        };
        let width = self.greenlist.config.context_width;
        if tokens.len() <= width {
            let message = format!(
                "a text of {} tokens is too short for a watermark with `context_width` {width}",
                tokens.len()
            );
            return Err(Error::new(ErrorKind::Parameter, message));
        }
        let (scored, green) = self.count(tokens)?;
        let (total, expected) = (scored as f64, self.greenlist.config.greenlist_ratio);
        let z_score =
            (green as f64 - expected * total) / (total * expected * (1.0 - expected)).sqrt();
        let p_value = 0.5 * libm::erfc(z_score / 2f64.sqrt());
        Ok(WatermarkDetection {
            num_tokens_scored: scored,
            num_green_tokens: green,
            green_fraction: green as f64 / total,
            z_score,
            p_value,
            prediction: z_score > z_threshold,
            confidence: 1.0 - p_value,
        })
    }

    /// How many tokens were judged, and how many were green.
    fn count(&self, tokens: &[u32]) -> Result<(usize, usize)> {
        // A window ends in the judged token; in the self-hash scheme that is one of its context.
        let before = match self.greenlist.config.seeding_scheme {
            SeedingScheme::LeftHash => self.greenlist.config.context_width,
            SeedingScheme::SelfHash => self.greenlist.config.context_width - 1,
        };
        let mut occurrences: HashMap<&[u32], usize> = HashMap::new();
        for window in tokens.windows(before + 1) {
            *occurrences.entry(window).or_default() += 1;
        }
        let (mut scored, mut green) = (0, 0);
        for (window, times) in occurrences {
            let context = match self.greenlist.config.seeding_scheme {
                SeedingScheme::LeftHash => &window[..before],
                SeedingScheme::SelfHash => window,
            };
            let times = if self.ignore_repeated_ngrams { 1 } else { times };
            scored += times;
            if self.greenlist.is_green(self.greenlist.seed(context)?, window[before]) {
                green += times;
            }
        }
        Ok((scored, green))
    }
}
