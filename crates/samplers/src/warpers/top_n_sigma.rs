//! Top-n-sigma: nothing further below the peak than the scores' spread allows.

use mlxgk_logits_processors::{Error, Result};

use super::{Warp, processor};
use crate::candidates::Candidates;

/// Keeps scores within `n` standard deviations of the highest (llama.cpp's `top_n_sigma`; Tang et
/// al., 2024).
///
/// The deviation is the population's, over all tokens that are not banned. Before a temperature
/// the cut does not depend on it.
///
/// ```
/// use mlxgk_samplers::{Context, LogitsProcessor, TopNSigma};
///
/// const OUT: f32 = f32::NEG_INFINITY;
/// let mut scores = [4.0, 3.0, 1.0, 0.0];
/// TopNSigma::new(1.0)?.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [4.0, 3.0, OUT, OUT]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopNSigma(f64);

impl TopNSigma {
    /// Keeps scores within `n` deviations, `n` above 0.
    ///
    /// # Errors
    /// When `n` is not above 0.
    pub fn new(n: f64) -> Result<Self> {
        if n > 0.0 && n.is_finite() {
            return Ok(Self(n));
        }
        Err(Error::parameter("top_n_sigma", "a finite number above 0", n))
    }
}

impl Warp for TopNSigma {
    fn warp(&self, candidates: &mut Candidates) {
        candidates.drop_banned();
        let scores = candidates.scores();
        let n = scores.len() as f64;
        let mean = scores.iter().copied().map(f64::from).sum::<f64>() / n;
        let squares: f64 = scores.iter().map(|&score| (f64::from(score) - mean).powi(2)).sum();
        let least = f64::from(candidates.max()) - self.0 * (squares / n).sqrt();
        candidates.keep(move |score, _| f64::from(score) >= least);
    }
}

processor!(TopNSigma, "TopNSigma", User);
