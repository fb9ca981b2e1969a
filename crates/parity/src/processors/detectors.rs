//! The watermarks' detectors.

use std::path::Path;

use mlxgk_logits_processors::{BayesianDetector, SynthIdTextDetector, WatermarkDetector};
use serde::Deserialize;
use serde_json::Value;

use super::build::Parameters;
use super::read;
use crate::Report;

/// Counts must be equal; of a score or probability, this much may differ.
const TOLERANCE: f64 = 1e-9;

/// The trained model computes in fp32 in HF, and in fp64 here.
const POSTERIOR_TOLERANCE: f64 = 1e-5;

pub(super) fn watermark(path: &Path, report: &mut Report) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Case {
        parameters: Value,
        bos_token_id: Option<u32>,
        ignore_repeated_ngrams: bool,
        z_threshold: f64,
        tokens: Vec<u32>,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        num_tokens_scored: f64,
        num_green_tokens: f64,
        green_fraction: f64,
        z_score: f64,
        p_value: f64,
        prediction: bool,
        confidence: f64,
    }
    for (at, case) in read::<Case>(path)?.iter().enumerate() {
        let p = Parameters(&case.parameters);
        let detector = WatermarkDetector::new(&p.watermarking()?, p.get("vocab_size")?);
        let found = detector.and_then(|mut detector| {
            if let Some(bos) = case.bos_token_id {
                detector = detector.skipping_bos(bos);
            }
            if case.ignore_repeated_ngrams {
                detector = detector.ignoring_repeated_ngrams();
            }
            detector.detect(&case.tokens, case.z_threshold)
        });
        let mut worst = 0.0;
        let outcome = found.map_err(|it| it.to_string()).and_then(|found| {
            let expected = &case.expected;
            let mut near = Near { worst: &mut worst, tolerance: TOLERANCE };
            near.check(
                "tokens scored",
                found.num_tokens_scored as f64,
                expected.num_tokens_scored,
            )?;
            near.check("green tokens", found.num_green_tokens as f64, expected.num_green_tokens)?;
            near.check("green fraction", found.green_fraction, expected.green_fraction)?;
            near.check("z-score", found.z_score, expected.z_score)?;
            near.check("p-value", found.p_value, expected.p_value)?;
            near.check("confidence", found.confidence, expected.confidence)?;
            near.check("prediction", found.prediction.into(), expected.prediction.into())
        });
        report.book("WatermarkDetector", &format!("case {at}"), worst, outcome);
    }
    Ok(())
}

pub(super) fn synthid(path: &Path, report: &mut Report) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Case {
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
    let bits = |row: &[bool]| row.iter().map(|&it| u8::from(it)).collect::<Vec<_>>();
    for (at, case) in read::<Case>(path)?.into_iter().enumerate() {
        let mut worst = 0.0;
        let check = |worst: &mut f64| {
            let text = |it: mlxgk_logits_processors::Error| it.to_string();
            let config = Parameters(&case.parameters).synthid()?;
            let detector = SynthIdTextDetector::new(&config).map_err(text)?;
            let g_values = detector.g_values(&case.tokens);
            let rows: Vec<String> =
                g_values.rows().map(|row| row.iter().map(u8::to_string).collect()).collect();
            if rows != case.g_values {
                return Err(format!("g-values {rows:?}, not {:?}", case.g_values));
            }
            let repetition = detector.context_repetition_mask(&case.tokens);
            let mask = detector.mask(&case.tokens, case.eos_token_id);
            if bits(&repetition) != case.context_repetition_mask || bits(&mask) != case.mask {
                return Err(format!("masks {repetition:?} and {mask:?}"));
            }
            let mean = detector.mean_score(&g_values, &mask);
            let weighted = detector.weighted_mean_score(&g_values, &mask);
            let (vocab, by_chance) = case.expected_mean_g_value;
            let model = BayesianDetector::new(case.beta.clone(), case.delta.clone(), case.prior);
            let posterior = model.and_then(|it| it.posterior(&g_values, &mask)).map_err(text)?;
            let mut near = Near { worst: &mut *worst, tolerance: TOLERANCE };
            // Beyond 1 no mean can be: it stands for there being none.
            let none = f64::INFINITY;
            near.check("mean", mean.unwrap_or(none), case.mean.unwrap_or(none))?;
            let expected = case.weighted_mean.unwrap_or(none);
            near.check("weighted mean", weighted.unwrap_or(none), expected)?;
            let expected = SynthIdTextDetector::expected_mean_g_value(vocab);
            near.check("expected mean", expected, by_chance)?;
            near.tolerance = POSTERIOR_TOLERANCE;
            near.check("posterior", posterior, case.posterior)
        };
        let outcome = check(&mut worst);
        report.book("SynthIDTextWatermarkDetector", &format!("case {at}"), worst, outcome);
    }
    Ok(())
}

/// Compares numbers and keeps the worst relative error.
struct Near<'a> {
    worst: &'a mut f64,
    tolerance: f64,
}

impl Near<'_> {
    fn check(&mut self, what: &str, got: f64, expected: f64) -> Result<(), String> {
        if got == expected {
            return Ok(());
        }
        let error = (got - expected).abs() / expected.abs();
        if error.is_nan() || error > self.tolerance {
            return Err(format!("{what} is {got}, not {expected}"));
        }
        *self.worst = self.worst.max(error);
        Ok(())
    }
}
