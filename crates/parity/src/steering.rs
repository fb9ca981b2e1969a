//! Steering: the tokens transformers chooses under torch forward hooks that do the same.
//!
//! Every case runs in one pass and in chunks, and a batch's rows alone, which must all give the
//! recorded tokens. See `xtask/record/steering.py`.

use std::{collections::BTreeMap, ops::Range, path::Path, rc::Rc, sync::Arc};

use mlxgk_decoding_strategies::{
    DEFAULT_PREFILL_CHUNK, DecoderSession, LeftPadded, Limits, RowGroup, SampleLoop, TokenLoop,
};
use mlxgk_mlx_models::{ComputeDtype, Decoder};
use mlxgk_steering::{
    Conflict, HookPoint, Injection, Operation, Steering, SteeringVectors, extract::direction,
};
use serde::Deserialize;

use crate::{Case as Named, Outcome, files, recent::Recent};

/// A prefill chunk that divides none of the prompts.
const CHUNK: usize = 4;

/// The cases of every `*.json` of `folder` and its `extraction`, on the model folders they name.
pub(crate) fn cases(folder: &Path) -> Vec<Named> {
    let mut cases = files::suites(folder, |path, suite| {
        let fixture: Fixture = files::read(path)?;
        let model = folder.join(&fixture.model);
        Ok(fixture.cases.into_iter().flat_map(|it| it.cases(&model, suite)).collect())
    });
    let extraction = folder.join("extraction");
    if extraction.is_dir() {
        cases.extend(files::suites(&extraction, |path, suite| {
            let fixture: Extraction = files::read(path)?;
            Ok(fixture.cases.into_iter().flat_map(|it| it.cases(suite)).collect())
        }));
    }
    cases
}

thread_local! {
    static DECODERS: Recent<Decoder> = const { Recent::new() };
}

fn decoder(folder: &Path) -> Result<Rc<Decoder>, String> {
    let load = |path: &Path| Decoder::load(path, ComputeDtype::Float32).map_err(|e| e.to_string());
    DECODERS.with(|it| it.get(folder, load))
}

/// Directions may be off by this much, absolute, from vectors of length 1 or so.
pub(crate) const TOLERANCE: f64 = 2e-5;

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

impl Contrast {
    fn cases(self, suite: &str) -> Vec<Named> {
        let shared = Arc::new(self);
        let case = |method: &String| {
            let (name, method) = (format!("{method}, {}", shared.name), method.clone());
            let shared = Arc::clone(&shared);
            Named::new(suite, name, move || shared.check(&method))
        };
        shared.directions.keys().map(case).collect()
    }

    fn check(&self, method: &str) -> Outcome {
        let ours = method
            .parse()
            .and_then(|method| direction(method, &self.positive, &self.negative))
            .map_err(|e| e.to_string())?;
        let pairs = ours.vector.iter().zip(&self.directions[method]);
        let worst = pairs.map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        let error = worst.max((ours.explained_variance - self.explained_variance[method]).abs());
        if error <= TOLERANCE { Ok(error) } else { Err(format!("off by {error:.1e}")) }
    }
}

impl Case {
    /// In one pass and in chunks, and a batch's rows alone.
    fn cases(self, model: &Path, suite: &str) -> Vec<Named> {
        let shared = Arc::new(self);
        let case = |way: String, chunk, rows: Range<usize>| {
            let (name, model) = (format!("{}{way}", shared.name), model.to_owned());
            let shared = Arc::clone(&shared);
            Named::new(suite, name, move || {
                let model = decoder(&model)?;
                shared.continues(&model, &shared.steering()?, chunk, rows).map(|()| 0.0)
            })
        };
        let all = 0..shared.prompts.len();
        let mut cases = vec![
            case(String::new(), DEFAULT_PREFILL_CHUNK, all.clone()),
            case(", in chunks".to_owned(), CHUNK, all.clone()),
        ];
        for row in all.filter(|_| shared.rows_stand_alone) {
            cases.push(case(format!(", row {row} alone"), DEFAULT_PREFILL_CHUNK, row..row + 1));
        }
        cases
    }

    fn steering(&self) -> Result<Steering, String> {
        let injections = self.injections.iter().map(Recorded::injection);
        Ok(Steering::new(injections.collect::<Result<_, _>>()?, Conflict::Sum))
    }

    fn continues(
        &self,
        model: &Decoder,
        steering: &Steering,
        chunk: usize,
        rows: Range<usize>,
    ) -> Result<(), String> {
        let (prompts, expected) = (&self.prompts[rows.clone()], &self.tokens[rows]);
        let prompts = LeftPadded::new(prompts, 0).map_err(|e| e.to_string())?;
        let mut hook = steering.hook(model).map_err(|e| e.to_string())?;
        let session = DecoderSession::prefill(model, &prompts, chunk, &mut hook)
            .map_err(|e| e.to_string())?;
        let limits = Limits { max_new_tokens: expected[0].len(), eos: Vec::new() };
        let mut tokens = SampleLoop::new(session, &prompts, RowGroup::greedy(limits));
        while let Some(step) = tokens.step() {
            step.map_err(|e| e.to_string())?;
        }
        let rows = tokens.into_parts().1;
        for (row, (ours, theirs)) in rows.iter().zip(expected).enumerate() {
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
        _ => Err(format!("{name} is not a hook point")),
    }
}
