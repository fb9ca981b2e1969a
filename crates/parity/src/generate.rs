//! `generate()`: the tokens transformers returns under many generation configs, draws included.
//!
//! Every case goes through the facade, as a user's request would: the config as JSON under HF's
//! field names, merged with the model's own, and torch's random stream. See
//! `xtask/record/generate.py`.

use std::path::Path;

use mlx_genkit::{ComputeDtype, GenerationConfig, Model, Request, Seed};
use serde::Deserialize;
use serde_json::Value;

use crate::{Report, files};

/// Compares with every `*.json` of `folder` and the model folders they name.
///
/// # Errors
/// When `folder` has no fixture or one is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    for path in files::json_files(folder)? {
        let fixture: Fixture = files::read(&path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let suite = format!("generate/{stem}");
        match mlx_genkit::load(folder.join(&fixture.model), ComputeDtype::Float32) {
            Ok(model) => {
                if fixture.cases.is_empty() {
                    report.book(&suite, "cases", 0.0, Err("the fixture has none".into()));
                }
                for case in &fixture.cases {
                    report.book(&suite, &case.name, 0.0, case.check(&model));
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
    finish_reasons: Vec<String>,
}

impl Case {
    fn check(&self, model: &Model) -> Result<(), String> {
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
        Ok(())
    }
}
