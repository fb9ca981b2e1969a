//! Stop strings: where they are seen among tokens, and where they end a generation; see
//! `xtask/record/stopping.py`.

use std::{borrow::Cow, collections::BTreeMap, path::Path, sync::Arc};

use mlx_genkit::tokenizer_bridge::{Files, StopStrings, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Case,
    asked::{self, Asked},
    files,
};

/// The cases of every `*.json` of `folder`.
pub(crate) fn cases(folder: &Path) -> Vec<Case> {
    files::suites(folder, |path, suite| match files::read(path)? {
        Fixture::Criteria { files, cases } => {
            let tokenizer = Arc::new(tokenizer(&files)?);
            let case = |(index, case): (usize, Sequence)| {
                let tokenizer = Arc::clone(&tokenizer);
                let name = format!("{index:03} {:?}", case.strings);
                Case::new(suite, name, move || case.check(&tokenizer).map(|()| 0.0))
            };
            Ok(cases.into_iter().enumerate().map(case).collect())
        }
        Fixture::Generate { model, cases } => {
            let folder = folder.join(model);
            let case = |case: Asked| {
                let (name, folder) = (case.name.clone(), folder.clone());
                Case::new(suite, name, move || {
                    case.compare(&case.run(&*asked::model(&folder)?)?.sequences).map(|()| 0.0)
                })
            };
            Ok(cases.into_iter().map(case).collect())
        }
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
        let mut stop =
            StopStrings::new(tokenizer, self.strings.clone()).map_err(|e| e.to_string())?;
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
