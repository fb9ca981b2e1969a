//! The trained detector.

use super::GValues;
use crate::{Error, ErrorKind, Result};

/// How likely a text is marked, by Bayes' rule over a trained model of marked flips
/// (`BayesianDetectorModel`).
///
/// The model is trained elsewhere; its file holds the three parameters. In a marked text the flips
/// of a layer depend on those of the layers before it: two different tokens met in the layer's
/// match with probability `sigmoid(beta + delta · earlier flips)`, and then a 1 is likelier.
///
/// ```
/// use mlxgk_logits_processors::{
///     BayesianDetector, SynthIdTextDetector, SynthIdTextWatermarkingConfig,
/// };
///
/// let config = SynthIdTextWatermarkingConfig::new(3, vec![654, 400]);
/// let g_values = SynthIdTextDetector::new(&config)?.g_values(&[5, 1, 4, 1, 5]);
/// let model = BayesianDetector::new(vec![0.5, 0.4], vec![0.0, 0.0, 0.1, 0.0], 0.5)?;
/// assert!((0.0..=1.0).contains(&model.posterior(&g_values, &[true, true, false])?));
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BayesianDetector {
    beta: Vec<f64>,
    delta: Vec<f64>,
    prior: f64,
}

impl BayesianDetector {
    /// A model for a watermark of `depth` layers: `beta` has `depth` numbers, `delta` `depth` rows
    /// of `depth`, of which only those below the diagonal count, and `prior` is the probability of
    /// a marked text before seeing it.
    ///
    /// # Errors
    /// When the sizes disagree, or the prior is not between 0 and 1.
    pub fn new(beta: Vec<f64>, delta: Vec<f64>, prior: f64) -> Result<Self> {
        if delta.len() != beta.len() * beta.len() {
            let message = format!(
                "`delta` must have {depth} rows of {depth} numbers, but has {} numbers",
                delta.len(),
                depth = beta.len()
            );
            return Err(Error::new(ErrorKind::Parameter, message));
        }
        if !(0.0..=1.0).contains(&prior) {
            return Err(Error::parameter("prior", "between 0 and 1", prior));
        }
        Ok(Self { beta, delta, prior })
    }

    /// The probability that a text with these flips is marked; `mask` tells which tokens count.
    ///
    /// # Errors
    /// When the flips have another number of layers than the model.
    pub fn posterior(&self, g_values: &GValues, mask: &[bool]) -> Result<f64> {
        let rows = g_values.rows().zip(mask).filter(|(_, counts)| **counts);
        let mut log_odds = {
            let prior = self.prior.clamp(1e-5, 1.0 - 1e-5);
            prior.ln() - (1.0 - prior).ln()
        };
        for (row, _) in rows {
            if row.len() != self.beta.len() {
                let rule = format!("{} layers deep, as the model is", self.beta.len());
                return Err(Error::parameter("g_values", &rule, row.len()));
            }
            for layer in 0..row.len() {
                log_odds += self.likelihood(row, layer).max(1e-30).ln() - 0.5f64.ln();
            }
        }
        Ok(1.0 / (1.0 + (-log_odds).exp()))
    }

    /// The probability of a layer's flip in a marked text, given the flips before it.
    fn likelihood(&self, row: &[u8], layer: usize) -> f64 {
        let delta = &self.delta[layer * self.beta.len()..][..layer];
        let earlier = delta.iter().zip(row).map(|(delta, &flip)| delta * f64::from(flip));
        let logit = self.beta[layer] + earlier.sum::<f64>();
        let two_tokens = 1.0 / (1.0 + (-logit).exp());
        0.5 * ((f64::from(row[layer]) + 0.5) * two_tokens + 1.0 - two_tokens)
    }
}
