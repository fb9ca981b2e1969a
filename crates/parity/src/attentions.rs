//! Attention weights; see `xtask/record/attentions.py`.
//!
//! Every case runs with a cache and without one: the weights are the same.

use std::path::Path;

use mlx_genkit::{Model, Request, Sequence};
use serde::Deserialize;
use serde_json::json;

use crate::{Case as Named, Outcome, asked, files};

/// How far a weight may be off.
pub(crate) const TOLERANCE: f64 = 1e-5;

/// The cases of every `*.json` of `folder`, on the model folders they name.
pub(crate) fn cases(folder: &Path) -> Vec<Named> {
    files::suites(folder, |path, suite| {
        let Fixture { model, cases } = files::read(path)?;
        let folder = folder.join(model);
        let case = |case: Case| {
            let name =
                format!("prompts of {:?}", case.prompts.iter().map(Vec::len).collect::<Vec<_>>());
            let folder = folder.clone();
            Named::new(suite, name, move || case.check(&*asked::model(&folder)?))
        };
        Ok(cases.into_iter().map(case).collect())
    })
}

#[derive(Deserialize)]
struct Fixture {
    /// Relative to the fixture's folder.
    model: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompts: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
    /// By row, token and layer. Of the first token the places are the prompt's middle position and its
    /// last, of others the one.
    rows: Vec<Vec<Vec<Places>>>,
}

/// By place, head and column, the newest last.
type Places = Vec<Vec<Vec<f64>>>;

impl Case {
    /// The worst error of a weight.
    fn check(&self, model: &Model) -> Outcome {
        let mut worst = 0.0_f64;
        for use_cache in [true, false] {
            let config = json!({
                "do_sample": false,
                "max_new_tokens": self.tokens[0].len(),
                "eos_token_id": [],
                "pad_token_id": 0,
                "use_cache": use_cache,
                "output_attentions": true,
            });
            let config = mlx_genkit::GenerationConfig::from_json(&config);
            let request = Request::batch(self.prompts.iter().cloned())
                .config(config.map_err(|e| e.to_string())?);
            let ours = model.generate(request).map_err(|e| e.to_string())?.sequences;
            let of = |what: String| format!("use_cache {use_cache}: {what}");
            let tokens: Vec<_> = ours.iter().map(|it| it.tokens.clone()).collect();
            if tokens != self.tokens {
                return Err(of(format!("{tokens:?} instead of {:?}", self.tokens)));
            }
            for (ours, theirs) in ours.iter().zip(&self.rows) {
                worst = worst.max(compare(ours, theirs).map_err(of)?);
            }
        }
        Ok(worst)
    }
}

fn compare(ours: &Sequence, theirs: &[Vec<Vec<Vec<Vec<f64>>>>]) -> Result<f64, String> {
    let Some(ours) = &ours.attentions else { return Err("no attention weights".into()) };
    if ours.steps.len() != theirs.len() {
        return Err(format!("weights of {} tokens instead of {}", ours.steps.len(), theirs.len()));
    }
    let mut worst = 0.0_f64;
    for (token, (ours, theirs)) in ours.steps.iter().zip(theirs).enumerate() {
        if ours.len() != theirs.len() {
            return Err(format!("{} layers instead of {}", ours.len(), theirs.len()));
        }
        for (layer, (ours, places)) in ours.iter().zip(theirs).enumerate() {
            let of = |what: String| format!("token {token}, layer {layer}: {what}");
            let last = ours.positions - 1;
            let positions = if token == 0 { vec![last.div_ceil(2), last] } else { vec![last] };
            if places.len() != positions.len() || places.iter().any(|it| it.len() != ours.heads) {
                return Err(of(format!("{} heads", ours.heads)));
            }
            for (position, heads) in positions.into_iter().zip(places) {
                for (head, theirs) in heads.iter().enumerate() {
                    let row = ours.row(head, position).unwrap_or_default();
                    // What a window has dropped is not in HF's.
                    let (old, new) = row.split_at(row.len().saturating_sub(theirs.len()));
                    if new.len() != theirs.len() || old.iter().any(|it| *it != 0.0) {
                        return Err(of(format!(
                            "{} columns instead of {}",
                            row.len(),
                            theirs.len()
                        )));
                    }
                    for (ours, theirs) in new.iter().zip(theirs) {
                        let error = (f64::from(*ours) - theirs).abs();
                        if error.is_nan() || error > TOLERANCE {
                            return Err(of(format!("{ours} instead of {theirs}")));
                        }
                        worst = worst.max(error);
                    }
                }
            }
        }
    }
    Ok(worst)
}
