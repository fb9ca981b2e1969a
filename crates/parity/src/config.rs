//! The generation config: transformers' own merge, lengths, checks and processors.
//!
//! Every case is a call of the real `generate` of a tiny model, halted where decoding would begin;
//! see `xtask/record/config.py`.

use std::path::Path;

use mlxgk_generation_config::{
    Error, GenerationConfig, Kwargs, Lengths, Merged, Sources, Warning, WarningKind,
    default_generation_params,
};
use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_samplers::{SamplerState, TorchRng, Warper};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Case, Outcome, files};

/// The cases of every `*.json` of `folder`.
pub(crate) fn cases(folder: &Path) -> Vec<Case> {
    files::suites(folder, |path, suite| {
        Ok(match files::read(path)? {
            File::Fields(file) => vec![Case::new(suite, "fields", move || file.check())],
            File::ModelConfig { cases } => {
                numbered(suite, cases, |it| it.config.clone().into(), |it| it.check())
            }
            File::Merge { cases } => {
                numbered(suite, cases, |it| it.kwargs.clone(), |it| it.check())
            }
            File::Processors { vocab_size, cases } => {
                numbered(suite, cases, |it| it.kwargs.clone(), move |it| it.check(vocab_size))
            }
        })
    })
}

/// Cases whose names are their places in the file, and what is asked of them.
fn numbered<C: Send + 'static>(
    suite: &str,
    cases: Vec<C>,
    about: impl Fn(&C) -> Value,
    check: impl Fn(&C) -> Outcome + Copy + Send + 'static,
) -> Vec<Case> {
    let case = |(at, case): (usize, C)| {
        let about: String = about(&case).to_string().chars().take(80).collect();
        Case::new(suite, format!("{at:03} {about}"), move || check(&case))
    };
    cases.into_iter().enumerate().map(case).collect()
}

/// Scores agree within this, relative to the larger of the score and 1.
pub(crate) const TOLERANCE: f64 = 2e-6;

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum File {
    Fields(Fields),
    ModelConfig { cases: Vec<ModelConfigCase> },
    Merge { cases: Vec<MergeCase> },
    Processors { vocab_size: usize, cases: Vec<ProcessorCase> },
}

#[derive(Deserialize)]
struct Fields {
    fields: Vec<String>,
    defaults: Map<String, Value>,
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

#[derive(Deserialize)]
struct ProcessorCase {
    kwargs: Value,
    prompt_len: usize,
    padding: usize,
    /// Prompt and generated tokens.
    context: Vec<u32>,
    /// HF's classes, in its order.
    names: Vec<String>,
    scores: Vec<f32>,
    /// The scores after the whole list; `None` is minus infinity.
    processed: Vec<Option<f32>>,
}

impl Fields {
    fn check(&self) -> Outcome {
        let expected: Vec<&str> = self.fields.iter().map(String::as_str).collect();
        // Fields that HF does not have may follow its own.
        let found = GenerationConfig::FIELDS.get(..expected.len()).unwrap_or_default();
        equal("the fields", &found, &expected.as_slice())?;
        same_fields(&default_generation_params().to_json(), &Value::Object(self.defaults.clone()))?;
        Ok(0.0)
    }
}

impl ModelConfigCase {
    fn check(&self) -> Outcome {
        let config = GenerationConfig::from_model_config(&Value::Object(self.config.clone()))
            .map_err(|it| it.to_string())?;
        same_fields(&config.to_json(), &Value::Object(self.expect.clone()))?;
        Ok(0.0)
    }
}

impl MergeCase {
    fn check(&self) -> Outcome {
        match (&self.expect, self.settle()) {
            (Expect::Refused { error }, Err(refused)) => equal("the refusal", &refused, error)?,
            (Expect::Refused { error }, Ok(_)) => {
                return Err(format!("passes, but HF refuses {error:?}"));
            }
            (Expect::Settled(_), Err(refused)) => return Err(format!("refused: {refused:?}")),
            (Expect::Settled(expect), Ok((merged, lengths, odd))) => {
                expect.compare(&merged, &lengths, odd)?;
            }
        }
        Ok(0.0)
    }

    /// Does what `generate` does with the fields, and says where and for which one it stops.
    fn settle(&self) -> Result<(Merged, Lengths, Vec<Warning>), Refused> {
        let at = |at: &'static str| {
            move |it: Error| Refused {
                at: at.to_owned(),
                field: it.field().unwrap_or_default().to_owned(),
            }
        };
        let model = GenerationConfig::from_json(&self.model).map_err(at("model"))?;
        let passed = GenerationConfig::from_json(&self.passed).map_err(at("passed"))?;
        let kwargs = Kwargs::from_json(&self.kwargs).map_err(at("generate"))?;
        let sources = Sources { kwargs: &kwargs, passed: &passed, model: &model };
        let merged = sources.merge().map_err(at("generate"))?;
        let (lengths, warnings) = merged
            .lengths(self.prompt_len, Some(self.max_position_embeddings))
            .map_err(at("generate"))?;
        Ok((merged, lengths, warnings))
    }
}

impl Settled {
    fn compare(&self, merged: &Merged, lengths: &Lengths, odd: Vec<Warning>) -> Result<(), String> {
        equal("max_length", &lengths.max_length, &self.max_length)?;
        equal("min_length", &lengths.min_length, &self.min_length)?;
        equal("mode", &merged.config.generation_mode(false).as_str(), &self.mode.as_str())?;
        same_changes(&merged.config, &self.changed)?;
        let (tokens, odd_tokens) = merged.special_tokens().map_err(|it| it.to_string())?;
        // HF keeps negative ids, which no model emits; here they are none.
        let token = |it: i64| u32::try_from(it).ok();
        let eos: Vec<u32> = self.eos.iter().flatten().copied().filter_map(token).collect();
        let pad = self.pad.and_then(token).or(eos.first().copied());
        equal("eos", &tokens.eos, &eos)?;
        equal("pad", &tokens.pad, &pad)?;
        equal("idle fields", &names(&merged.warnings), &self.idle)?;
        equal("odd fields", &names(&[odd, odd_tokens].concat()), &self.odd)
    }
}

impl ProcessorCase {
    /// Makes the processors, compares their names and what they do.
    fn check(&self, vocab_size: usize) -> Outcome {
        let kwargs = Kwargs::from_json(&self.kwargs).map_err(|it| it.to_string())?;
        let (passed, model) = (GenerationConfig::default(), GenerationConfig::default());
        let pipeline = Sources { kwargs: &kwargs, passed: &passed, model: &model }
            .merge()
            .and_then(|it| it.resolve(self.prompt_len, None)?.pipeline(vocab_size))
            .map_err(|it| it.to_string())?;

        let before = pipeline.processors.iter().map(LogitsProcessor::name);
        let warpers = pipeline.warpers.warpers().iter().map(class_of);
        let after = pipeline.after.iter().map(LogitsProcessor::name);
        let names: Vec<String> = before.chain(warpers).chain(after).map(str::to_owned).collect();
        equal("the order", &names, &self.names)?;

        let mut scores = self.scores.clone();
        let context =
            Context { padding: self.padding, ..Context::new(&self.context, self.prompt_len) };
        pipeline
            .processors
            .process(&context, &mut scores)
            .and_then(|()| {
                pipeline.warpers.sampler().warp(
                    &mut scores,
                    &SamplerState::default(),
                    &mut TorchRng::new(0),
                )
            })
            .and_then(|()| pipeline.after.process(&context, &mut scores))
            .map_err(|it| it.to_string())?;
        equal("the number of scores", &scores.len(), &self.processed.len())?;
        let mut worst = 0.0_f64;
        for (token, (&found, expected)) in scores.iter().zip(&self.processed).enumerate() {
            match expected {
                None if found == f32::NEG_INFINITY => {}
                Some(it) if found.is_finite() => {
                    let (found, expected) = (f64::from(found), f64::from(*it));
                    worst = worst.max((found - expected).abs() / expected.abs().max(1.0));
                }
                _ => return Err(format!("token {token} scores {found}, expected {expected:?}")),
            }
        }
        if worst > TOLERANCE {
            return Err(format!("the scores are off by {worst:e}"));
        }
        Ok(worst)
    }
}

/// HF's class of a warper.
fn class_of(warper: &Warper) -> &'static str {
    match warper {
        Warper::Temperature(_) => "TemperatureLogitsWarper",
        Warper::TopH(_) => "TopHLogitsWarper",
        Warper::TopK(_) => "TopKLogitsWarper",
        Warper::TopP(_) => "TopPLogitsWarper",
        Warper::MinP(_) => "MinPLogitsWarper",
        Warper::Typical(_) => "TypicalLogitsWarper",
        Warper::Epsilon(_) => "EpsilonLogitsWarper",
        Warper::Eta(_) => "EtaLogitsWarper",
        _ => "not HF's",
    }
}

/// Compares with the defaults plus what HF changed.
fn same_changes(config: &GenerationConfig, changed: &Map<String, Value>) -> Result<(), String> {
    // What is computed from the prompt is compared on its own.
    let computed = ["max_length", "min_length"];
    let mut expect = default_generation_params().to_json();
    let mut found = config.to_json();
    let (Some(expected), Some(found)) = (expect.as_object_mut(), found.as_object_mut()) else {
        return Err("the config is not a JSON object".to_owned());
    };
    expected.extend(changed.clone());
    for fields in [&mut *expected, &mut *found] {
        fields.retain(|key, value| !value.is_null() && !computed.contains(&key.as_str()));
    }
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
