//! Stop strings: where they are seen among tokens, and where they end a generation; see
//! `xtask/record/stopping.py`.

use std::{borrow::Cow, collections::BTreeMap, path::Path, sync::Arc};

use mlx_genkit::{
    ComputeDtype,
    tokenizer_bridge::{Files, StopStrings, Tokenizer},
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Report,
    cases::{self, Asked},
};

/// Compares with every `*.json` of `folder`.
///
/// # Errors
/// When `folder` has no fixture or one is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    cases::suites(folder, |suite, fixture, report| {
        match fixture {
            Fixture::Criteria { files, cases } => {
                let tokenizer = Arc::new(tokenizer(&files)?);
                for (index, case) in cases.iter().enumerate() {
                    let outcome = case.check(&tokenizer);
                    report.book(suite, &index.to_string(), 0.0, outcome);
                }
            }
            Fixture::Generate { model, cases } => {
                let model = mlx_genkit::load(folder.join(model), ComputeDtype::Float32)
                    .map_err(|e| e.to_string())?;
                let check = |it: &Asked| it.compare(&it.run(&model)?.sequences).map(|()| 0.0);
                cases::book(report, suite, &cases, |it| it, check);
            }
        }
        Ok(())
    })
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Fixture {
    Criteria { files: BTreeMap<String, Value>, cases: Vec<Sequence> },
    Generate { model: String, cases: Vec<Asked> },
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
