//! Draft models, early exits, prompt lookup, guidance, and what is returned beside the tokens; see
//! `xtask/record/assisted.py`.
//!
//! Where a helper only guesses and nothing is drawn, the case runs a second time without it: the
//! tokens must be the same.

use std::path::Path;

use mlx_genkit::{Assistant, Generation, GenerationConfig, Model, Sequence};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Case as Named, Outcome,
    asked::{self, Asked},
    files,
};

/// How far a score or a logit may be off.
pub(crate) const TOLERANCE: f64 = 1e-4;

/// The cases of every `*.json` of `folder`, on the model folders they name.
pub(crate) fn cases(folder: &Path) -> Vec<Named> {
    files::suites(folder, |path, suite| {
        let fixture: Fixture = files::read(path)?;
        let (model, assistant) = (folder.join(&fixture.model), folder.join(&fixture.assistant));
        let case = |case: Case| {
            let (name, model, assistant) =
                (case.asked.name.clone(), model.clone(), assistant.clone());
            Named::new(suite, name, move || {
                case.check(&*asked::model(&model)?, &*asked::model(&assistant)?)
            })
        };
        Ok(fixture.cases.into_iter().map(case).collect())
    })
}

#[derive(Deserialize)]
struct Fixture {
    /// Relative to the fixture's folder, like `assistant`.
    model: String,
    assistant: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    #[serde(flatten)]
    asked: Asked,
    /// The draft model's generation config, where it is to help.
    assistant: Option<Value>,
    negative_prompts: Option<Vec<Vec<u32>>>,
    /// Null stands for minus infinity, as in the next ones.
    transition_scores: Vec<Vec<Option<f64>>>,
    normalized_scores: Vec<Vec<Option<f64>>>,
    logits: Vec<Vec<Option<f64>>>,
    /// How many passes of the model it took, where the model's own heads guess.
    passes: Option<usize>,
}

impl Case {
    /// The worst error of a score or logit.
    fn check(&self, model: &Model, assistant: &Model) -> Outcome {
        let mut config = self.asked.config()?;
        config.output_scores = Some(true);
        config.output_logits = Some(true);
        let helper = match &self.assistant {
            None => None,
            Some(own) => {
                let own = GenerationConfig::from_json(own).map_err(|e| e.to_string())?;
                Some(Assistant::new(assistant).config(own))
            }
        };
        let guided = config.guidance_scale.is_some();
        let helped = helper.is_some()
            || config.prompt_lookup_num_tokens.is_some()
            || config.use_mtp == Some(true);
        let weighed = config.assistant_ensemble_weight.is_some();
        let Generation { sequences: ours, acceptance, .. } =
            self.run(model, config.clone(), helper)?;
        self.asked.compare(&ours)?;
        let passes = acceptance.map(|it| it.turns);
        if self.passes.is_some_and(|theirs| passes != Some(theirs)) {
            return Err(format!("{passes:?} passes instead of {:?}", self.passes));
        }
        if helped && !guided && !weighed && self.asked.seed.is_none() {
            config.prompt_lookup_num_tokens = None;
            config.assistant_early_exit = None;
            config.use_mtp = None;
            let alone = self.run(model, config, None)?.sequences;
            self.asked.compare(&alone).map_err(|what| format!("without help, {what}"))?;
        }
        self.compare_scores(&ours, guided)
    }

    fn run(
        &self,
        model: &Model,
        config: GenerationConfig,
        helper: Option<Assistant<'_>>,
    ) -> Result<Generation, String> {
        let negative = self.negative_prompts.iter().flatten().cloned();
        let request = self.asked.request(config).negative_prompts(negative);
        let generation = match helper {
            Some(helper) => model.generate(request.assistant(helper)),
            None => model.generate(request),
        };
        generation.map_err(|e| e.to_string())
    }

    fn compare_scores(&self, ours: &[Sequence], guided: bool) -> Outcome {
        let mut worst = 0.0_f64;
        let mut compare = |what: &str, ours: Vec<f32>, theirs: &[Option<f64>]| {
            if ours.len() != theirs.len() {
                return Err(format!("{} {what} instead of {}", ours.len(), theirs.len()));
            }
            for (at, (&ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                let theirs = theirs.unwrap_or(f64::NEG_INFINITY);
                let same = f64::from(ours) == theirs;
                let error = if same { 0.0 } else { (f64::from(ours) - theirs).abs() };
                if error.is_nan() || error > TOLERANCE {
                    return Err(format!("{what}: token {at} has {ours} instead of {theirs}"));
                }
                worst = worst.max(error);
            }
            Ok(())
        };
        for (at, ours) in ours.iter().enumerate() {
            for (normalize, theirs) in
                [(false, &self.transition_scores), (true, &self.normalized_scores)]
            {
                let scores = ours.transition_scores(normalize).map_err(|e| e.to_string())?;
                compare("scores", scores.unwrap_or_default(), &theirs[at])?;
            }
            // HF's logits are from before the guidance, ours from after it.
            if !guided {
                let logits = ours.recorded.logits.iter().zip(&ours.tokens);
                let logits = logits.map(|(row, &token)| row[token as usize]).collect();
                compare("logits", logits, &self.logits[at])?;
            }
        }
        Ok(worst)
    }
}
