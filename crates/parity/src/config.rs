//! The generation config: transformers' own merge, lengths, checks and processors.
//!
//! Every case is a call of the real `generate` of a tiny model, halted where decoding would begin;
//! see `xtask/record/config.py`.

use std::path::Path;

use mlxgk_generation_config::{
    Error, GenerationConfig, Kwargs, Lengths, Merged, Sources, Warning, WarningKind,
    default_generation_params,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Report;

/// Compares with every file of `folder`.
///
/// # Errors
/// When a file is missing or is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    check_fields(&read(folder, "fields.json")?, &mut report);
    for case in read::<Cases<ModelConfigCase>>(folder, "model_config.json")?.cases {
        let made = GenerationConfig::from_model_config(&Value::Object(case.config.clone()));
        let outcome = made
            .map_err(|it| it.to_string())
            .and_then(|it| same_fields(&it.to_json(), &Value::Object(case.expect)));
        book(&mut report, "config/model_config.json", outcome);
    }
    for case in read::<Cases<MergeCase>>(folder, "merge.json")?.cases {
        let outcome = check_merge(&case);
        book(&mut report, "config/merge.json", outcome);
    }
    Ok(report)
}

#[derive(Deserialize)]
struct Fields {
    fields: Vec<String>,
    defaults: Map<String, Value>,
}

#[derive(Deserialize)]
struct Cases<T> {
    cases: Vec<T>,
}

#[derive(Deserialize)]
struct ModelConfigCase {
    config: Map<String, Value>,
    expect: Map<String, Value>,
}

#[derive(Deserialize)]
struct MergeCase {
    kwargs: Value,
    passed: Value,
    model: Value,
    prompt_len: usize,
    max_position_embeddings: usize,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Expect {
    Refused { error: Refused },
    Settled(Settled),
}

#[derive(Deserialize, PartialEq, Debug)]
struct Refused {
    /// The source that HF refuses on its own, or `generate`.
    at: String,
    field: String,
}

#[derive(Deserialize)]
struct Settled {
    /// What differs from the defaults after the merge.
    changed: Map<String, Value>,
    max_length: usize,
    min_length: usize,
    mode: String,
    eos: Option<Vec<i64>>,
    pad: Option<i64>,
    /// The fields that HF's last validation warns of.
    idle: Vec<String>,
    /// The fields that its length and token checks warn of.
    odd: Vec<String>,
}

fn check_fields(file: &Fields, report: &mut Report) {
    let expected: Vec<&str> = file.fields.iter().map(String::as_str).collect();
    let outcome = equal("the fields", &GenerationConfig::FIELDS, &expected.as_slice());
    book(report, "config/fields.json", outcome);
    let defaults = default_generation_params().to_json();
    let outcome = same_fields(&defaults, &Value::Object(file.defaults.clone()));
    book(report, "config/fields.json", outcome);
}

fn check_merge(case: &MergeCase) -> Result<(), String> {
    match (&case.expect, settle(case)) {
        (Expect::Refused { error }, Err(refused)) => equal("the refusal", &refused, error),
        (Expect::Refused { error }, Ok(_)) => Err(format!("passes, but HF refuses {error:?}")),
        (Expect::Settled(_), Err(refused)) => Err(format!("refused: {refused:?}")),
        (Expect::Settled(expect), Ok((merged, lengths, odd))) => {
            equal("max_length", &lengths.max_length, &expect.max_length)?;
            equal("min_length", &lengths.min_length, &expect.min_length)?;
            equal("mode", &merged.config.generation_mode(false).as_str(), &expect.mode.as_str())?;
            same_changes(&merged.config, &expect.changed)?;
            let (tokens, odd_tokens) = merged.special_tokens().map_err(|it| it.to_string())?;
            // HF keeps negative ids, which no model emits; here they are none.
            let eos: Vec<u32> = expect.eos.iter().flatten().copied().filter_map(token).collect();
            let pad = expect.pad.and_then(token).or(eos.first().copied());
            equal("eos", &tokens.eos, &eos)?;
            equal("pad", &tokens.pad, &pad)?;
            equal("idle fields", &names(&merged.warnings), &expect.idle)?;
            equal("odd fields", &names(&[odd, odd_tokens].concat()), &expect.odd)
        }
    }
}

fn token(id: i64) -> Option<u32> {
    u32::try_from(id).ok()
}

/// Does what `generate` does with the fields, and says where and for which one it stops.
fn settle(case: &MergeCase) -> Result<(Merged, Lengths, Vec<Warning>), Refused> {
    let at = |at: &'static str| {
        move |it: Error| Refused {
            at: at.to_owned(),
            field: it.field().unwrap_or_default().to_owned(),
        }
    };
    let model = GenerationConfig::from_json(&case.model).map_err(at("model"))?;
    let passed = GenerationConfig::from_json(&case.passed).map_err(at("passed"))?;
    let kwargs = Kwargs::from_json(&case.kwargs).map_err(at("generate"))?;
    let sources = Sources { kwargs: &kwargs, passed: &passed, model: &model };
    let merged = sources.merge().map_err(at("generate"))?;
    let (lengths, warnings) = merged
        .lengths(case.prompt_len, Some(case.max_position_embeddings))
        .map_err(at("generate"))?;
    Ok((merged, lengths, warnings))
}

/// Compares with the defaults plus what HF changed.
fn same_changes(config: &GenerationConfig, changed: &Map<String, Value>) -> Result<(), String> {
    // What is computed from the prompt is compared on its own.
    let computed = ["max_length", "min_length"];
    let mut expect = default_generation_params().to_json();
    let mut found = config.to_json();
    let (Some(expected), Some(found)) = (expect.as_object_mut(), found.as_object_mut()) else {
        return Err("a config is no JSON object".to_owned());
    };
    expected.extend(changed.clone());
    expected.retain(|_, value| !value.is_null());
    expected.retain(|key, _| !computed.contains(&key.as_str()));
    found.retain(|key, _| !computed.contains(&key.as_str()));
    same_fields(&Value::Object(found.clone()), &expect)
}

/// The fields that warnings name, once each and sorted, as the recorder lists them.
fn names(warnings: &[Warning]) -> Vec<String> {
    let reported = warnings.iter().filter(|it| it.kind() != WarningKind::UnknownField);
    let mut names: Vec<String> = reported.map(|it| it.field().to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// Equality of JSON in which 1 and 1.0 are one number.
fn same(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

fn same_fields(found: &Value, expected: &Value) -> Result<(), String> {
    if same(found, expected) {
        return Ok(());
    }
    let keys = [found, expected].into_iter().filter_map(Value::as_object).flat_map(Map::keys);
    let differs = |key: &&String| !same(&found[key.as_str()], &expected[key.as_str()]);
    let key = keys.into_iter().find(differs).map_or("", String::as_str);
    Err(format!("`{key}` is {}, expected {}", found[key], expected[key]))
}

fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what}: {found:?}, expected {expected:?}"))
    }
}

fn book(report: &mut Report, suite: &str, outcome: Result<(), String>) {
    let at = report.tallies.iter().find(|it| it.suite == suite).map_or(0, |it| it.cases);
    report.book(suite, &format!("case {at}"), 0.0, outcome);
}

fn read<T: serde::de::DeserializeOwned>(folder: &Path, name: &str) -> Result<T, String> {
    let path = folder.join(name);
    let bytes = std::fs::read(&path).map_err(|it| format!("{}: {it}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|it| format!("{}: {it}", path.display()))
}
