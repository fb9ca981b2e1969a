//! Processors against transformers: the same bans, kept scores within 1e-6 relative.
//!
//! One file per HF class holds its cases; beside them stand combinations as `generate` makes them
//! (`lists.json`), parameters that HF refuses (`errors.json`), the detectors and torch's generator.

mod build;
mod detectors;
mod generator;
mod rows;

use std::path::Path;

use mlxgk_logits_processors::{LogitsProcessor, ProcessorList};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::rows::Case;
use crate::Report;
use crate::files::{self, json_files};

/// Kept scores may differ by this much, relative to their size.
pub(crate) const TOLERANCE: f64 = 1e-6;

/// Compares everything under `folder` (`fixtures/processors`).
///
/// # Errors
/// When a file cannot be read or is not what this module expects.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    for path in json_files(folder)? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match &name[..] {
            "lists" => lists(&path, &mut report)?,
            "errors" => errors(&path, &mut report)?,
            "generator" => generator::check(&path, &mut report)?,
            "WatermarkDetector" => detectors::watermark(&path, &mut report)?,
            "SynthIDTextWatermarkDetector" => detectors::synthid(&path, &mut report)?,
            _ => class(&path, &name, &mut report)?,
        }
    }
    Ok(report)
}

/// The cases of a fixture file.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, String> {
    #[derive(Deserialize)]
    struct File<T> {
        cases: Vec<T>,
    }
    files::read::<File<T>>(path).map(|it| it.cases)
}

fn class(path: &Path, name: &str, report: &mut Report) -> Result<(), String> {
    for (at, case) in read::<Case>(path)?.iter().enumerate() {
        let title = format!("case {at} (vocabulary {}, {})", case.vocab, case.parameters);
        if name == "UnbatchedClassifierFreeGuidanceLogitsProcessor" {
            case.book_guidance(name, &title, report);
            continue;
        }
        let processor = build::processor(name, &case.parameters);
        case.book(name, &title, processor, report);
    }
    Ok(())
}

/// Lists as HF makes them from a generation config and a caller's own processors.
fn lists(path: &Path, report: &mut Report) -> Result<(), String> {
    #[derive(Deserialize)]
    struct ListCase {
        #[serde(flatten)]
        case: Case,
        user: Vec<User>,
        order: Vec<String>,
    }
    #[derive(Deserialize)]
    struct User {
        class: String,
        parameters: Value,
    }
    for (at, ListCase { case, user, order }) in read(path)?.into_iter().enumerate() {
        let title = format!("case {at} (vocabulary {}, {})", case.vocab, case.parameters);
        let user = user.iter().map(|it| build::processor(&it.class, &it.parameters));
        let user: Result<Vec<_>, _> = user.collect();
        let list = build::list(&case.parameters, case.vocab).and_then(|it: ProcessorList| {
            let list = it.with_user_processors(user?);
            let names: Vec<_> = list.iter().map(LogitsProcessor::name).collect();
            if names == order { Ok(list) } else { Err(format!("order {names:?}, not {order:?}")) }
        });
        let list = list.map(|it| Box::new(it) as Box<dyn LogitsProcessor>);
        case.book("lists", &title, list, report);
    }
    Ok(())
}

/// Parameters that HF refuses must be refused, at the same time.
fn errors(path: &Path, report: &mut Report) -> Result<(), String> {
    #[derive(Deserialize)]
    struct ErrorCase {
        class: String,
        parameters: Value,
        raised: String,
        #[serde(default)]
        vocab: usize,
        #[serde(default)]
        tokens: Vec<u32>,
        #[serde(default)]
        prompt_len: usize,
    }
    for it in read::<ErrorCase>(path)? {
        let outcome = match (build::processor(&it.class, &it.parameters), &it.raised[..]) {
            (Err(_), "construction") => Ok(()),
            (Err(error), _) => Err(format!("refused on construction: {error}")),
            (Ok(_), "construction") => Err("taken on construction".to_owned()),
            (Ok(processor), _) => {
                let context = mlxgk_logits_processors::Context::new(&it.tokens, it.prompt_len);
                match processor.process(&context, &mut vec![0.0; it.vocab]) {
                    Ok(()) => Err("taken in use".to_owned()),
                    Err(_) => Ok(()),
                }
            }
        };
        report.book("errors", &format!("{} {}", it.class, it.parameters), 0.0, outcome);
    }
    Ok(())
}
