//! Dynamic temperature: hotter where the distribution is flat.

use mlxgk_logits_processors::{Error, Result};

use super::{Warp, processor};
use crate::candidates::Candidates;

/// Divides the scores by a temperature between `t - range` and `t + range`, the higher the nearer
/// the entropy is to its maximum (llama.cpp's `temp_ext`; kalomaze, 2023).
///
/// With `n` candidates left and entropy `H` it is `low + (high - low) (H / ln n)^exponent`, `low`
/// being at least 0. At a temperature of 0 the most likely token alone remains.
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, DynamicTemperature};
///
/// // All alike, so as flat as can be: the highest temperature, 1.5.
/// let mut scores = [1.5, 1.5];
/// DynamicTemperature::new(1.0, 0.5, 1.0)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [1.0, 1.0]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicTemperature {
    low: f64,
    high: f64,
    exponent: f64,
}

impl DynamicTemperature {
    /// Temperatures from `temperature - range` to `temperature + range`; an exponent of 1 follows
    /// the entropy in proportion.
    ///
    /// # Errors
    /// When one of the three is not finite, the temperature not above 0, or another negative.
    pub fn new(temperature: f64, range: f64, exponent: f64) -> Result<Self> {
        super::Temperature::new(temperature)?;
        for (name, value) in [("dynatemp_range", range), ("dynatemp_exponent", exponent)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::parameter(name, "a finite number of at least 0", value));
            }
        }
        Ok(Self { low: (temperature - range).max(0.0), high: temperature + range, exponent })
    }
}

impl Warp for DynamicTemperature {
    fn warp(&self, candidates: &mut Candidates) {
        candidates.drop_banned();
        if candidates.len() < 2 {
            return;
        }
        candidates.softmax();
        let probs = candidates.probs().iter().copied().filter(|&p| p > 0.0).map(f64::from);
        let entropy = -probs.map(|p| p * p.ln()).sum::<f64>();
        let flatness = (entropy / (candidates.len() as f64).ln()).clamp(0.0, 1.0);
        let temperature = self.low + (self.high - self.low) * flatness.powf(self.exponent);
        let temperature = temperature as f32;
        let max = candidates.max();
        if (max / temperature).is_finite() {
            candidates.rescale(|score| score / temperature);
        } else {
            candidates.keep(move |score, _| score == max);
        }
    }
}

processor!(DynamicTemperature, "DynamicTemperature", Temperature);
