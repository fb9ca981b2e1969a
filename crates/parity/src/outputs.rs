//! Hidden states, and generation without a cache; see `xtask/record/outputs.py`.
//!
//! Every case runs with a cache and without one: the tokens and the states are the same.

use std::path::Path;

use mlx_genkit::{HiddenStates, Model, Sequence};
use serde::Deserialize;

use crate::{
    Case as Named, Outcome,
    asked::{self, Asked},
    files,
};

/// How far a value of a hidden state may be off, as in the area `models`.
pub(crate) const TOLERANCE: f64 = 1e-4;

/// The cases of every `*.json` of `folder`, on the model folders they name.
pub(crate) fn cases(folder: &Path) -> Vec<Named> {
    files::suites(folder, |path, suite| {
        let Fixture { model, stride, cases } = files::read(path)?;
        let folder = folder.join(model);
        let case = |case: Case| {
            let (name, folder) = (case.asked.name.clone(), folder.clone());
            Named::new(suite, name, move || case.check(&*asked::model(&folder)?, stride))
        };
        Ok(cases.into_iter().map(case).collect())
    })
}

#[derive(Deserialize)]
struct Fixture {
    /// Relative to the fixture's folder.
    model: String,
    /// Of each state, every so many values are recorded.
    stride: usize,
    cases: Vec<Case>,
}

/// By sequence, token, layer, position and value; absent for beams.
type Hidden = Vec<Vec<Vec<Vec<Vec<f64>>>>>;

#[derive(Deserialize)]
struct Case {
    #[serde(flatten)]
    asked: Asked,
    hidden: Option<Hidden>,
}

impl Case {
    /// The worst error of a state.
    fn check(&self, model: &Model, stride: usize) -> Outcome {
        let mut worst = 0.0_f64;
        for use_cache in [true, false] {
            let mut config = self.asked.config()?;
            config.use_cache = Some(use_cache);
            config.output_hidden_states = Some(self.hidden.is_some());
            let ours = model.generate(self.asked.request(config));
            let ours = ours.map_err(|e| e.to_string())?.sequences;
            let of = |what: String| format!("use_cache {use_cache}: {what}");
            self.asked.compare(&ours).map_err(of)?;
            for (ours, theirs) in ours.iter().zip(self.hidden.iter().flatten()) {
                worst = worst.max(compare(ours, theirs, stride).map_err(of)?);
            }
        }
        Ok(worst)
    }
}

fn compare(ours: &Sequence, theirs: &[Vec<Vec<Vec<f64>>>], stride: usize) -> Result<f64, String> {
    let Some(HiddenStates { hidden_size, steps, .. }) = &ours.hidden_states else {
        return Err("no hidden states".into());
    };
    if steps.len() != theirs.len() || steps.iter().zip(theirs).any(|(a, b)| a.len() != b.len()) {
        return Err(format!("states of {} tokens instead of {}", steps.len(), theirs.len()));
    }
    let mut worst = 0.0_f64;
    for (token, (ours, theirs)) in steps.iter().zip(theirs).enumerate() {
        for (layer, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let last = ours.len() - hidden_size;
            for (start, theirs) in [0, last].into_iter().zip(theirs) {
                let ours = ours[start..start + hidden_size].iter().step_by(stride);
                for (ours, theirs) in ours.zip(theirs) {
                    let error = (f64::from(*ours) - theirs).abs();
                    if error.is_nan() || error > TOLERANCE {
                        return Err(format!(
                            "token {token}, layer {layer}: {ours} instead of {theirs}"
                        ));
                    }
                    worst = worst.max(error);
                }
            }
        }
    }
    Ok(worst)
}
