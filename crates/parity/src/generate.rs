//! `generate()`: the tokens transformers returns under many generation configs, draws included,
//! and with beams their scores.
//!
//! Every case goes through the facade, as a user's request would: the config as JSON under HF's
//! field names, merged with the model's own, and torch's random stream. Two areas have this form:
//! see `xtask/record/generate.py` and `xtask/record/beams.py`.

use std::path::Path;

use mlx_genkit::{Model, Sequence};
use serde::Deserialize;

use crate::{
    Case as Named, Outcome,
    asked::{self, Asked},
};

/// How far a sequence's score may be off: two fp32 sums of log-probabilities in another order.
pub(crate) const TOLERANCE: f64 = 1e-4;

/// The cases of every `*.json` of `folder`, on the model folders they name.
pub(crate) fn cases(folder: &Path) -> Vec<Named> {
    asked::on_one_model(folder, |it: &Case| &it.asked, Case::check)
}

#[derive(Deserialize)]
struct Case {
    #[serde(flatten)]
    asked: Asked,
    #[serde(default)]
    negative_prompts: Vec<Vec<u32>>,
    /// Of beams.
    scores: Option<Vec<f64>>,
    beam_indices: Option<Vec<Vec<usize>>>,
}

impl Case {
    /// The worst error of a score.
    fn check(&self, model: &Model) -> Outcome {
        let request = self.asked.request(self.asked.config()?);
        let request = request.negative_prompts(self.negative_prompts.iter().cloned());
        let ours = model.generate(request).map_err(|e| e.to_string())?.sequences;
        self.asked.compare(&ours)?;
        self.check_beams(&ours)
    }

    fn check_beams(&self, ours: &[Sequence]) -> Outcome {
        if let Some(theirs) = &self.beam_indices {
            for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                if ours.beam_indices.as_ref() != Some(theirs) {
                    let ours = &ours.beam_indices;
                    return Err(format!(
                        "sequence {at} came by beams {ours:?} instead of {theirs:?}"
                    ));
                }
            }
        }
        let mut worst = 0.0_f64;
        for (at, (ours, theirs)) in ours.iter().zip(self.scores.iter().flatten()).enumerate() {
            let ours = ours.score.map_or(f64::NAN, f64::from);
            let error = (ours - theirs).abs();
            if error.is_nan() || error > TOLERANCE {
                return Err(format!("sequence {at} has the score {ours} instead of {theirs}"));
            }
            worst = worst.max(error);
        }
        Ok(worst)
    }
}
