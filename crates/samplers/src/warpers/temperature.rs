//! Temperature: how far the distribution leans towards its peak.

use mlxgk_logits_processors::{Error, Result};

use super::{Warp, processor};
use crate::candidates::Candidates;

/// Divides the scores by a temperature (HF's `TemperatureLogitsWarper`).
///
/// Below 1 the likely tokens gain, above 1 the unlikely ones do.
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, Temperature};
///
/// let mut scores = [1.0, -2.0];
/// Temperature::new(0.5)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [2.0, -4.0]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature(f32);

impl Temperature {
    /// A temperature above 0.
    ///
    /// # Errors
    /// When it is not above 0; for the most likely token, use [`greedy`](crate::greedy).
    pub fn new(temperature: f64) -> Result<Self> {
        if temperature > 0.0 && temperature as f32 > 0.0 && temperature.is_finite() {
            return Ok(Self(temperature as f32));
        }
        let rule = "a finite number above 0 (for the most likely token, turn sampling off)";
        Err(Error::parameter("temperature", rule, temperature))
    }

    /// What the scores are divided by.
    pub fn divisor(self) -> f32 {
        self.0
    }
}

impl Warp for Temperature {
    fn warp(&self, candidates: &mut Candidates) {
        candidates.rescale(|score| score / self.0);
    }
}

processor!(Temperature, "TemperatureLogitsWarper", Temperature);
