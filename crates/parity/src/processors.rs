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
use serde_json::Value;

use self::rows::Batch;
use crate::{Case, files};

/// Kept scores may differ by this much, relative to their size.
const TOLERANCE: f64 = 1e-6;

/// That of scores, and those of the detectors.
pub(crate) const TOLERANCES: &[f64] =
    &[TOLERANCE, detectors::TOLERANCE, detectors::POSTERIOR_TOLERANCE];

/// The cases of every `*.json` under `folder` (`fixtures/processors`).
pub(crate) fn cases(folder: &Path) -> Vec<Case> {
    files::suites(folder, |path, suite| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match &name[..] {
            "lists" => lists(path, suite),
            "errors" => errors(path, suite),
            "generator" => generator::cases(path, suite),
            "WatermarkDetector" => detectors::watermark(path, suite),
            "SynthIDTextWatermarkDetector" => detectors::synthid(path, suite),
            _ => class(path, suite, &name),
        }
    })
}

fn class(path: &Path, suite: &str, name: &str) -> Result<Vec<Case>, String> {
    let case = |(at, batch): (usize, Batch)| {
        let name = name.to_owned();
        Case::new(suite, batch.title(at), move || {
            if name == "UnbatchedClassifierFreeGuidanceLogitsProcessor" {
                return batch.check_guidance();
            }
            batch.check(&*build::processor(&name, &batch.parameters)?)
        })
    };
    Ok(files::read_cases(path)?.into_iter().enumerate().map(case).collect())
}

/// Lists as HF makes them from a generation config and a caller's own processors.
fn lists(path: &Path, suite: &str) -> Result<Vec<Case>, String> {
    #[derive(Deserialize)]
    struct ListCase {
        #[serde(flatten)]
        batch: Batch,
        user: Vec<User>,
        order: Vec<String>,
    }
    #[derive(Deserialize)]
    struct User {
        class: String,
        parameters: Value,
    }
    let case = |(at, ListCase { batch, user, order }): (usize, ListCase)| {
        Case::new(suite, batch.title(at), move || {
            let user = user.iter().map(|it| build::processor(&it.class, &it.parameters));
            let user = user.collect::<Result<Vec<_>, _>>()?;
            let list: ProcessorList =
                build::list(&batch.parameters, batch.vocab)?.with_user_processors(user);
            let names: Vec<_> = list.iter().map(LogitsProcessor::name).collect();
            if names != order {
                return Err(format!("order {names:?}, not {order:?}"));
            }
            batch.check(&list)
        })
    };
    Ok(files::read_cases(path)?.into_iter().enumerate().map(case).collect())
}

/// Parameters that HF refuses must be refused, at the same time.
fn errors(path: &Path, suite: &str) -> Result<Vec<Case>, String> {
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
    let check = |it: &ErrorCase| match (build::processor(&it.class, &it.parameters), &it.raised[..])
    {
        (Err(_), "construction") => Ok(0.0),
        (Err(error), _) => Err(format!("refused on construction: {error}")),
        (Ok(_), "construction") => Err("taken on construction".to_owned()),
        (Ok(processor), _) => {
            let context = mlxgk_logits_processors::Context::new(&it.tokens, it.prompt_len);
            match processor.process(&context, &mut vec![0.0; it.vocab]) {
                Ok(()) => Err("taken in use".to_owned()),
                Err(_) => Ok(0.0),
            }
        }
    };
    let case = |(at, it): (usize, ErrorCase)| {
        let name = format!("{at:03} {} {}", it.class, it.parameters);
        Case::new(suite, name, move || check(&it))
    };
    Ok(files::read_cases(path)?.into_iter().enumerate().map(case).collect())
}
