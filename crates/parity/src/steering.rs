//! Steering: the tokens transformers chooses under torch forward hooks that do the same.
//!
//! Every case runs in one pass and in chunks, and a batch's rows alone, which must all give the
//! recorded tokens. See `xtask/record/steering.py`.

use std::{collections::BTreeMap, path::Path};

use mlxgk_decoding_strategies::{
    DEFAULT_PREFILL_CHUNK, DecoderSession, Decoding, LeftPadded, Rule, Stop,
};
use mlxgk_logits_processors::ProcessorList;
use mlxgk_mlx_models::{ComputeDtype, Decoder};
use mlxgk_steering::{
    Conflict, HookPoint, Injection, Operation, Steering, SteeringVectors, extract::direction,
};
use serde::Deserialize;

use crate::{Report, files};

/// A prefill chunk that divides none of the prompts.
const CHUNK: usize = 4;

/// Compares with every `*.json` of `folder` and the model folders they name.
///
/// # Errors
/// When `folder` has no fixture or one is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    for path in files::json_files(folder)? {
        let fixture: Fixture = files::read(&path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let suite = format!("steering/{stem}");
        let model = match Decoder::load(&folder.join(&fixture.model), ComputeDtype::Float32) {
            Ok(model) => model,
            Err(e) => {
                report.book(&suite, "load", f64::NAN, Err(e.to_string()));
                continue;
            }
        };
        if fixture.cases.is_empty() {
            report.book(&suite, "cases", 0.0, Err("the fixture has none".into()));
        }
        for case in &fixture.cases {
            let steering = match case.steering() {
                Ok(steering) => steering,
                Err(what) => {
                    report.book(&suite, &case.name, 0.0, Err(what));
                    continue;
                }
            };
            let rows = 0..case.prompts.len();
            for (way, chunk) in [("", DEFAULT_PREFILL_CHUNK), (", in chunks", CHUNK)] {
                let outcome = case.continues(&model, &steering, chunk, rows.clone());
                report.book(&suite, &format!("{}{way}", case.name), 0.0, outcome);
            }
            for row in rows.filter(|_| case.rows_stand_alone) {
                let outcome =
                    case.continues(&model, &steering, DEFAULT_PREFILL_CHUNK, row..row + 1);
                report.book(&suite, &format!("{}, row {row} alone", case.name), 0.0, outcome);
            }
        }
    }
    let extraction = folder.join("extraction");
    if extraction.is_dir() {
        for path in files::json_files(&extraction)? {
            check_extraction(&files::read(&path)?, &mut report);
        }
    }
    Ok(report)
}

/// Directions may be off by this much, absolute, from vectors of length 1 or so.
const TOLERANCE: f64 = 2e-5;

fn check_extraction(fixture: &Extraction, report: &mut Report) {
    for case in &fixture.cases {
        for (name, theirs) in &case.directions {
            let found = name
                .parse()
                .and_then(|method| direction(method, &case.positive, &case.negative))
                .map_err(|e| e.to_string());
            let compared = found.map(|ours| {
                let pairs = ours.vector.iter().zip(theirs);
                let worst = pairs.map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                worst.max((ours.explained_variance - case.explained_variance[name]).abs())
            });
            let (error, outcome) = match compared {
                Ok(error) if error <= TOLERANCE => (error, Ok(())),
                Ok(error) => (error, Err(format!("off by {error:.1e}"))),
                Err(what) => (f64::NAN, Err(what)),
            };
            report.book("steering/extraction", &format!("{name}, {}", case.name), error, outcome);
        }
    }
}

#[derive(Deserialize)]
struct Extraction {
    cases: Vec<Contrast>,
}

#[derive(Deserialize)]
struct Contrast {
    name: String,
    positive: Vec<Vec<f32>>,
    negative: Vec<Vec<f32>>,
    /// By method.
    directions: BTreeMap<String, Vec<f64>>,
    explained_variance: BTreeMap<String, f64>,
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
    injections: Vec<Recorded>,
    prompts: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
    #[serde(default)]
    rows_stand_alone: bool,
}

#[derive(Deserialize)]
struct Recorded {
    /// One set, or several that span a subspace; by hook point, or `logits`.
    vectors: Vec<BTreeMap<String, Vec<f32>>>,
    op: String,
    alpha: f64,
    positions: String,
    schedule: String,
}

impl Case {
    fn steering(&self) -> Result<Steering, String> {
        let injections = self.injections.iter().map(Recorded::injection);
        Ok(Steering::new(injections.collect::<Result<_, _>>()?, Conflict::Sum))
    }

    fn continues(
        &self,
        model: &Decoder,
        steering: &Steering,
        chunk: usize,
        rows: std::ops::Range<usize>,
    ) -> Result<(), String> {
        let (prompts, expected) = (&self.prompts[rows.clone()], &self.tokens[rows]);
        let prompts = LeftPadded::new(prompts, 0).map_err(|e| e.to_string())?;
        let mut hook = steering.hook(model).map_err(|e| e.to_string())?;
        let session = DecoderSession::prefill(model, &prompts, chunk, &mut hook)
            .map_err(|e| e.to_string())?;
        let stop = Stop { max_new_tokens: expected[0].len(), eos: Vec::new() };
        let (rows, padding) = (prompts.rows(), prompts.padding());
        let mut decoding =
            Decoding::new(session, rows, padding, ProcessorList::default(), Rule::Greedy, stop, 0);
        decoding.by_ref().try_for_each(|it| it.map(|_| ())).map_err(|e| e.to_string())?;
        for (row, (ours, theirs)) in decoding.rows().iter().zip(expected).enumerate() {
            if &ours.tokens != theirs {
                let same = ours.tokens.iter().zip(theirs).take_while(|(a, b)| a == b).count();
                return Err(format!("row {row} differs from token {same} on"));
            }
        }
        Ok(())
    }
}

impl Recorded {
    fn injection(&self) -> Result<Injection, String> {
        let sets = self.vectors.iter().map(|set| {
            let vectors = set.iter().map(|(name, vector)| Ok((point(name)?, vector.clone())));
            SteeringVectors::new(vectors.collect::<Result<Vec<_>, String>>()?)
                .map_err(|e| e.to_string())
        });
        let mut sets = sets.collect::<Result<Vec<_>, String>>()?;
        let operation: Operation = self.op.parse().map_err(|e| format!("{e}"))?;
        let injection = match operation {
            Operation::AblateSubspace => Injection::subspace(sets),
            _ => Injection::new(sets.remove(0), self.alpha).operation(operation),
        };
        let positions = self.positions.parse().map_err(|e| format!("{e}"))?;
        let schedule = self.schedule.parse().map_err(|e| format!("{e}"))?;
        Ok(injection.positions(positions).schedule(schedule))
    }
}

/// The logit bias is what adding after the final norm comes to.
fn point(name: &str) -> Result<HookPoint, String> {
    match name.split_once('.') {
        None if name == "logits" || name == "final_norm" => Ok(HookPoint::FinalNorm),
        Some(("resid_post", layer)) => {
            layer.parse().map(HookPoint::ResidPost).map_err(|e| format!("{name}: {e}"))
        }
        _ => Err(format!("{name} is no hook point")),
    }
}
