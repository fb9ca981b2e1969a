//! `generate()`: the tokens transformers returns under many generation configs, draws included,
//! and with beams their scores.
//!
//! Every case goes through the facade, as a user's request would: the config as JSON under HF's
//! field names, merged with the model's own, and torch's random stream. Two areas have this form:
//! see `xtask/record/generate.py` and `xtask/record/beams.py`.

use std::path::Path;

use mlx_genkit::{ComputeDtype, GenerationConfig, Model, Request, Seed, Sequence};
use serde::Deserialize;
use serde_json::Value;

use crate::{Report, files};

/// How far a sequence's score may be off: two fp32 sums of log-probabilities in another order.
const TOLERANCE: f64 = 1e-4;

/// Compares with every `*.json` of `folder` and the model folders they name.
///
/// # Errors
/// When `folder` has no fixture or one is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    let area = folder.file_name().unwrap_or_default().to_string_lossy();
    for path in files::json_files(folder)? {
        let fixture: Fixture = files::read(&path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let suite = format!("{area}/{stem}");
        match mlx_genkit::load(folder.join(&fixture.model), ComputeDtype::Float32) {
            Ok(model) => {
                if fixture.cases.is_empty() {
                    report.book(&suite, "cases", 0.0, Err("the fixture has none".into()));
                }
                for case in &fixture.cases {
                    match case.check(&model) {
                        Ok(error) => report.book(&suite, &case.name, error, Ok(())),
                        Err(what) => report.book(&suite, &case.name, 0.0, Err(what)),
                    }
                }
            }
            Err(e) => report.book(&suite, "load", f64::NAN, Err(e.to_string())),
        }
    }
    Ok(report)
}

#[derive(Deserialize)]
struct Fixture {
    /// Relative to the fixture's folder.
    model: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    /// For `torch.manual_seed`; none where nothing is drawn.
    seed: Option<u64>,
    prompts: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
    /// Of beams.
    scores: Option<Vec<f64>>,
    beam_indices: Option<Vec<Vec<usize>>>,
    finish_reasons: Vec<String>,
}

impl Case {
    /// The worst error of a score.
    fn check(&self, model: &Model) -> Result<f64, String> {
        let config = GenerationConfig::from_json(&self.config).map_err(|e| e.to_string())?;
        let prompts = self.prompts.iter().map(|it| it.clone().into());
        let seed = Seed::Torch(self.seed.unwrap_or(0));
        let request = Request::batch(prompts).config(config).seed(seed);
        let ours = mlx_genkit::generate(model, request).map_err(|e| e.to_string())?.sequences;
        if ours.len() != self.tokens.len() {
            return Err(format!("{} sequences instead of {}", ours.len(), self.tokens.len()));
        }
        for (at, (ours, theirs)) in ours.iter().zip(&self.tokens).enumerate() {
            if &ours.tokens != theirs {
                let same = ours.tokens.iter().zip(theirs).take_while(|(a, b)| a == b).count();
                return Err(format!(
                    "sequence {at} differs from token {same} on: {:?} instead of {:?}",
                    ours.tokens.get(same),
                    theirs.get(same)
                ));
            }
        }
        let reasons: Vec<_> = ours.iter().map(|it| it.finish_reason.as_str()).collect();
        if reasons != self.finish_reasons {
            return Err(format!("ended by {reasons:?} instead of {:?}", self.finish_reasons));
        }
        self.check_beams(&ours)
    }

    fn check_beams(&self, ours: &[Sequence]) -> Result<f64, String> {
        if let Some(theirs) = &self.beam_indices {
            for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                if ours.beam_indices.as_ref() != Some(theirs) {
                    let ours = &ours.beam_indices;
                    return Err(format!(
                        "sequence {at} came by beams {ours:?} instead of {theirs:?}"
                    ));
                }
            }
        }
        let mut worst = 0.0_f64;
        for (at, (ours, theirs)) in ours.iter().zip(self.scores.iter().flatten()).enumerate() {
            let ours = ours.score.map_or(f64::NAN, f64::from);
            let error = (ours - theirs).abs();
            if error.is_nan() || error > TOLERANCE {
                return Err(format!("sequence {at} has the score {ours} instead of {theirs}"));
            }
            worst = worst.max(error);
        }
        Ok(worst)
    }
}
