//! What the areas have in common whose cases are requests to the facade.

use std::path::Path;

use mlx_genkit::{ComputeDtype, Generation, GenerationConfig, Model, Request, Seed, Sequence};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Report, files};

/// A call of `model.generate`, and what came back.
#[derive(Deserialize)]
pub(crate) struct Asked {
    pub(crate) name: String,
    config: Value,
    /// For `torch.manual_seed`; none where nothing is drawn.
    pub(crate) seed: Option<u64>,
    prompts: Vec<Vec<u32>>,
    pub(crate) tokens: Vec<Vec<u32>>,
    finish_reasons: Vec<String>,
}

impl Asked {
    pub(crate) fn config(&self) -> Result<GenerationConfig, String> {
        GenerationConfig::from_json(&self.config).map_err(|e| e.to_string())
    }

    pub(crate) fn request<'a>(&self, config: GenerationConfig) -> Request<'a> {
        Request::batch(self.prompts.iter().map(|it| it.clone().into()))
            .config(config)
            .seed(Seed::Torch(self.seed.unwrap_or(0)))
    }

    /// Serves the request as it was recorded.
    pub(crate) fn run(&self, model: &Model) -> Result<Generation, String> {
        mlx_genkit::generate(model, self.request(self.config()?)).map_err(|e| e.to_string())
    }

    /// Compares tokens and finish reasons.
    pub(crate) fn compare(&self, ours: &[Sequence]) -> Result<(), String> {
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

/// Reads every `*.json` of `folder` and books what `check` does with it, under `area/file`.
pub(crate) fn suites<F: DeserializeOwned>(
    folder: &Path,
    mut check: impl FnMut(&str, F, &mut Report) -> Result<(), String>,
) -> Result<Report, String> {
    let mut report = Report::default();
    let area = folder.file_name().unwrap_or_default().to_string_lossy();
    for path in files::json_files(folder)? {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let suite = format!("{area}/{stem}");
        let fixture = files::read(&path)?;
        if let Err(what) = check(&suite, fixture, &mut report) {
            report.book(&suite, "load", f64::NAN, Err(what));
        }
    }
    Ok(report)
}

/// Serves the cases of every `*.json` of `folder` on the one model that each file names, and books
/// what `check` finds of them.
pub(crate) fn on_one_model<C: DeserializeOwned>(
    folder: &Path,
    asked: fn(&C) -> &Asked,
    check: impl Fn(&C, &Model) -> Result<f64, String>,
) -> Result<Report, String> {
    #[derive(Deserialize)]
    struct Fixture<C> {
        /// Relative to the fixture's folder.
        model: String,
        cases: Vec<C>,
    }

    suites(folder, |suite, fixture: Fixture<C>, report| {
        let model = load(folder, &fixture.model)?;
        book(report, suite, &fixture.cases, asked, |case| check(case, &model));
        Ok(())
    })
}

/// Loads the model folder that a fixture names, to compute in fp32.
pub(crate) fn load(folder: &Path, name: &str) -> Result<Model, String> {
    mlx_genkit::load(folder.join(name), ComputeDtype::Float32).map_err(|e| e.to_string())
}

/// Books what `check` finds of each case: its worst error.
pub(crate) fn book<C>(
    report: &mut Report,
    suite: &str,
    cases: &[C],
    asked: fn(&C) -> &Asked,
    check: impl Fn(&C) -> Result<f64, String>,
) {
    if cases.is_empty() {
        report.book(suite, "cases", 0.0, Err("the fixture has none".into()));
    }
    for case in cases {
        match check(case) {
            Ok(error) => report.book(suite, &asked(case).name, error, Ok(())),
            Err(what) => report.book(suite, &asked(case).name, 0.0, Err(what)),
        }
    }
}
