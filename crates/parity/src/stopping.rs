//! Stop strings: where they are seen among tokens, and where they end a generation; see
//! `xtask/record/stopping.py`.

use std::{borrow::Cow, collections::BTreeMap, path::Path, sync::Arc};

use mlx_genkit::{
    ComputeDtype, GenerationConfig, Model, Request, Seed,
    tokenizer_bridge::{Files, StopStrings, Tokenizer},
};
use serde::Deserialize;
use serde_json::Value;

use crate::{Report, files};

/// Compares with every `*.json` of `folder`.
///
/// # Errors
/// When `folder` has no fixture or one is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    for path in files::json_files(folder)? {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let suite = format!("stopping/{stem}");
        match files::read(&path)? {
            Fixture::Criteria { files, cases } => {
                let tokenizer = Arc::new(tokenizer(&files)?);
                for (index, case) in cases.iter().enumerate() {
                    let outcome = case.check(&tokenizer);
                    report.book(&suite, &index.to_string(), 0.0, outcome);
                }
            }
            Fixture::Generate { model, cases } => {
                let model = mlx_genkit::load(folder.join(model), ComputeDtype::Float32)
                    .map_err(|e| e.to_string())?;
                for case in &cases {
                    report.book(&suite, &case.name, 0.0, case.check(&model));
                }
            }
        }
    }
    Ok(report)
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Fixture {
    Criteria { files: BTreeMap<String, Value>, cases: Vec<Sequence> },
    Generate { model: String, cases: Vec<Case> },
}

fn tokenizer(files: &BTreeMap<String, Value>) -> Result<Tokenizer, String> {
    let json = files.get("tokenizer.json").ok_or("the fixture has no tokenizer.json")?;
    let text = match json {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let files = Files { tokenizer: Some(Cow::Owned(text.into_bytes())), ..Files::default() };
    Tokenizer::from_files(&files).map_err(|e| e.to_string())
}

/// Tokens, and the lengths at which they end with one of the strings.
#[derive(Deserialize)]
struct Sequence {
    strings: Vec<String>,
    ids: Vec<u32>,
    stops: Vec<usize>,
}

impl Sequence {
    fn check(&self, tokenizer: &Arc<Tokenizer>) -> Result<(), String> {
        let mut stop = StopStrings::new(Arc::clone(tokenizer), self.strings.clone())
            .map_err(|e| e.to_string())?;
        let mut stops = Vec::new();
        for len in 1..=self.ids.len() {
            if stop.end(&self.ids[..len]).map_err(|e| e.to_string())? {
                stops.push(len);
            }
        }
        if stops == self.stops {
            return Ok(());
        }
        Err(format!("{:?} is seen at {stops:?} instead of {:?}", self.strings, self.stops))
    }
}

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
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
        for (at, (ours, theirs)) in ours.iter().zip(&self.tokens).enumerate() {
            if &ours.tokens != theirs {
                return Err(format!("sequence {at} is {:?} instead of {theirs:?}", ours.tokens));
            }
        }
        let reasons: Vec<_> = ours.iter().map(|it| it.finish_reason.as_str()).collect();
        if reasons != self.finish_reasons {
            return Err(format!("ended by {reasons:?} instead of {:?}", self.finish_reasons));
        }
        Ok(())
    }
}
