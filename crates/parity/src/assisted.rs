//! Draft models, prompt lookup, guidance, and what is returned beside the tokens; see
//! `xtask/record/assisted.py`.
//!
//! Where a helper only guesses and nothing is drawn, the case runs a second time without it: the
//! tokens must be the same.

use std::path::Path;

use mlx_genkit::{Assistant, ComputeDtype, GenerationConfig, Model, Request, Seed, Sequence};
use serde::Deserialize;
use serde_json::Value;

use crate::{Report, files};

/// How far a score or a logit may be off.
const TOLERANCE: f64 = 1e-4;

/// Compares with every `*.json` of `folder` and the model folders they name.
///
/// # Errors
/// When `folder` has no fixture or one is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    for path in files::json_files(folder)? {
        let fixture: Fixture = files::read(&path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let suite = format!("assisted/{stem}");
        let load = |name: &str| mlx_genkit::load(folder.join(name), ComputeDtype::Float32);
        match load(&fixture.model).and_then(|model| Ok((model, load(&fixture.assistant)?))) {
            Ok((model, assistant)) => {
                if fixture.cases.is_empty() {
                    report.book(&suite, "cases", 0.0, Err("the fixture has none".into()));
                }
                for case in &fixture.cases {
                    match case.check(&model, &assistant) {
                        Ok(error) => report.book(&suite, &case.name, error, Ok(())),
                        Err(what) => report.book(&suite, &case.name, 0.0, Err(what)),
                    }
                }
            }
            Err(e) => report.book(&suite, "load", f64::NAN, Err(e.to_string())),
        }
    }
    Ok(report)
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
    name: String,
    config: Value,
    /// The draft model's generation config, where it is to help.
    assistant: Option<Value>,
    negative_prompts: Option<Vec<Vec<u32>>>,
    /// For `torch.manual_seed`; none where nothing is drawn.
    seed: Option<u64>,
    prompts: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
    finish_reasons: Vec<String>,
    /// Null stands for minus infinity, as in the next ones.
    transition_scores: Vec<Vec<Option<f64>>>,
    normalized_scores: Vec<Vec<Option<f64>>>,
    logits: Vec<Vec<Option<f64>>>,
}

impl Case {
    /// The worst error of a score or logit.
    fn check(&self, model: &Model, assistant: &Model) -> Result<f64, String> {
        let mut config = GenerationConfig::from_json(&self.config).map_err(|e| e.to_string())?;
        config.output_scores = Some(true);
        config.output_logits = Some(true);
        let helper = match &self.assistant {
            None => None,
            Some(own) => {
                let own = GenerationConfig::from_json(own).map_err(|e| e.to_string())?;
                Some(Assistant::new(assistant).config(own))
            }
        };
        let helped = helper.is_some() || config.prompt_lookup_num_tokens.is_some();
        let ours = self.run(model, config.clone(), helper)?;
        self.compare_tokens(&ours)?;
        if helped && self.seed.is_none() {
            config.prompt_lookup_num_tokens = None;
            let alone = self.run(model, config.clone(), None)?;
            self.compare_tokens(&alone).map_err(|what| format!("without help, {what}"))?;
        }
        self.compare_scores(&ours, config.guidance_scale.is_some())
    }

    fn run(
        &self,
        model: &Model,
        config: GenerationConfig,
        helper: Option<Assistant<'_>>,
    ) -> Result<Vec<Sequence>, String> {
        let negative = self.negative_prompts.iter().flatten().map(|it| it.clone().into());
        let mut request = Request::batch(self.prompts.iter().map(|it| it.clone().into()))
            .config(config)
            .negative_prompts(negative)
            .seed(Seed::Torch(self.seed.unwrap_or(0)));
        if let Some(helper) = helper {
            request = request.assistant(helper);
        }
        Ok(mlx_genkit::generate(model, request).map_err(|e| e.to_string())?.sequences)
    }

    fn compare_tokens(&self, ours: &[Sequence]) -> Result<(), String> {
        for (at, (ours, theirs)) in ours.iter().zip(&self.tokens).enumerate() {
            if &ours.tokens != theirs {
                let same = ours.tokens.iter().zip(theirs).take_while(|(a, b)| a == b).count();
                return Err(format!(
                    "sequence {at} differs from token {same} on: {:?} instead of {:?}",
                    ours.tokens.get(same),
                    theirs.get(same)
                ));
            }
        }
        let reasons: Vec<_> = ours.iter().map(|it| it.finish_reason.as_str()).collect();
        if reasons != self.finish_reasons {
            return Err(format!("ended by {reasons:?} instead of {:?}", self.finish_reasons));
        }
        Ok(())
    }

    fn compare_scores(&self, ours: &[Sequence], guided: bool) -> Result<f64, String> {
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
            // HF's logits are from before the guidance, ours from behind it.
            if !guided {
                let logits = ours.kept.logits.iter().zip(&ours.tokens);
                let logits = logits.map(|(row, &token)| row[token as usize]).collect();
                compare("logits", logits, &self.logits[at])?;
            }
        }
        Ok(worst)
    }
}
