//! The watermarks' detectors.

use std::path::Path;

use mlxgk_logits_processors::{BayesianDetector, SynthIdTextDetector, WatermarkDetector};
use serde::Deserialize;
use serde_json::Value;

use super::build::Parameters;
use crate::{Case, Outcome, files};

/// Counts must be equal; of a score or probability, this much may differ.
pub(super) const TOLERANCE: f64 = 1e-9;

/// The trained model computes in fp32 in HF, and in fp64 here.
pub(super) const POSTERIOR_TOLERANCE: f64 = 1e-5;

pub(super) fn watermark(path: &Path, suite: &str) -> Result<Vec<Case>, String> {
    let case = |(at, it): (usize, Watermarked)| {
        Case::new(suite, format!("{at:03} {}", it.parameters), move || it.check())
    };
    Ok(files::read_cases(path)?.into_iter().enumerate().map(case).collect())
}

pub(super) fn synthid(path: &Path, suite: &str) -> Result<Vec<Case>, String> {
    let case = |(at, it): (usize, SynthId)| {
        Case::new(suite, format!("{at:03} of {} tokens", it.tokens.len()), move || it.check())
    };
    Ok(files::read_cases(path)?.into_iter().enumerate().map(case).collect())
}

#[derive(Deserialize)]
struct Watermarked {
    parameters: Value,
    bos_token_id: Option<u32>,
    ignore_repeated_ngrams: bool,
    z_threshold: f64,
    tokens: Vec<u32>,
    expected: Detection,
}

#[derive(Deserialize)]
struct Detection {
    num_tokens_scored: f64,
    num_green_tokens: f64,
    green_fraction: f64,
    z_score: f64,
    p_value: f64,
    prediction: bool,
    confidence: f64,
}

impl Watermarked {
    fn check(&self) -> Outcome {
        let p = Parameters(&self.parameters);
        let mut detector =
            WatermarkDetector::new(&p.watermarking()?, p.get("vocab_size")?).map_err(text)?;
        if let Some(bos) = self.bos_token_id {
            detector = detector.skipping_bos(bos);
        }
        if self.ignore_repeated_ngrams {
            detector = detector.ignoring_repeated_ngrams();
        }
        let found = detector.detect(&self.tokens, self.z_threshold).map_err(text)?;
        let it = &self.expected;
        let mut near = Near { worst: 0.0, tolerance: TOLERANCE };
        near.check("tokens scored", found.num_tokens_scored as f64, it.num_tokens_scored)?;
        near.check("green tokens", found.num_green_tokens as f64, it.num_green_tokens)?;
        near.check("green fraction", found.green_fraction, it.green_fraction)?;
        near.check("z-score", found.z_score, it.z_score)?;
        near.check("p-value", found.p_value, it.p_value)?;
        near.check("confidence", found.confidence, it.confidence)?;
        near.check("prediction", found.prediction.into(), it.prediction.into())?;
        Ok(near.worst)
    }
}

#[derive(Deserialize)]
struct SynthId {
    parameters: Value,
    tokens: Vec<u32>,
    eos_token_id: Option<u32>,
    g_values: Vec<String>,
    context_repetition_mask: Vec<u8>,
    mask: Vec<u8>,
    beta: Vec<f64>,
    delta: Vec<f64>,
    prior: f64,
    posterior: f64,
    expected_mean_g_value: (usize, f64),
    mean: Option<f64>,
    weighted_mean: Option<f64>,
}

impl SynthId {
    fn check(&self) -> Outcome {
        let bits = |row: &[bool]| row.iter().map(|&it| u8::from(it)).collect::<Vec<_>>();
        let config = Parameters(&self.parameters).synthid()?;
        let detector = SynthIdTextDetector::new(&config).map_err(text)?;
        let g_values = detector.g_values(&self.tokens);
        let rows: Vec<String> =
            g_values.rows().map(|row| row.iter().map(u8::to_string).collect()).collect();
        if rows != self.g_values {
            return Err(format!("g-values {rows:?}, not {:?}", self.g_values));
        }
        let repetition = detector.context_repetition_mask(&self.tokens);
        let mask = detector.mask(&self.tokens, self.eos_token_id);
        if bits(&repetition) != self.context_repetition_mask || bits(&mask) != self.mask {
            return Err(format!("masks {repetition:?} and {mask:?}"));
        }
        let mean = detector.mean_score(&g_values, &mask);
        let weighted = detector.weighted_mean_score(&g_values, &mask);
        let (vocab, by_chance) = self.expected_mean_g_value;
        let model = BayesianDetector::new(self.beta.clone(), self.delta.clone(), self.prior);
        let posterior = model.and_then(|it| it.posterior(&g_values, &mask)).map_err(text)?;
        let mut near = Near { worst: 0.0, tolerance: TOLERANCE };
        // Beyond 1 no mean can be: it stands for there being none.
        let none = f64::INFINITY;
        near.check("mean", mean.unwrap_or(none), self.mean.unwrap_or(none))?;
        let expected = self.weighted_mean.unwrap_or(none);
        near.check("weighted mean", weighted.unwrap_or(none), expected)?;
        let expected = SynthIdTextDetector::expected_mean_g_value(vocab);
        near.check("expected mean", expected, by_chance)?;
        near.tolerance = POSTERIOR_TOLERANCE;
        near.check("posterior", posterior, self.posterior)?;
        Ok(near.worst)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn text(error: mlxgk_logits_processors::Error) -> String {
    error.to_string()
}

/// Compares numbers and keeps the worst relative error.
struct Near {
    worst: f64,
    tolerance: f64,
}

impl Near {
    fn check(&mut self, what: &str, got: f64, expected: f64) -> Result<(), String> {
        if got == expected {
            return Ok(());
        }
        let error = (got - expected).abs() / expected.abs();
        if error.is_nan() || error > self.tolerance {
            return Err(format!("{what} is {got}, not {expected}"));
        }
        self.worst = self.worst.max(error);
        Ok(())
    }
}
