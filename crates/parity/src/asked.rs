//! What the areas have in common whose cases are requests to the facade.

use std::{path::Path, rc::Rc};

use mlx_genkit::{ComputeDtype, Generation, GenerationConfig, Model, Request, Seed, Sequence};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Case, Outcome, files, recent::Recent};

/// A call of `model.generate`, and what came back.
#[derive(Deserialize)]
pub(crate) struct Asked {
    pub(crate) name: String,
    config: Value,
    /// For `torch.manual_seed`; none where nothing is drawn.
    pub(crate) seed: Option<u64>,
    prompts: Vec<Vec<u32>>,
    pub(crate) tokens: Vec<Vec<u32>>,
    finish_reasons: Vec<String>,
}

impl Asked {
    pub(crate) fn config(&self) -> Result<GenerationConfig, String> {
        GenerationConfig::from_json(&self.config).map_err(|e| e.to_string())
    }

    pub(crate) fn request<'a>(&self, config: GenerationConfig) -> Request<'a> {
        Request::batch(self.prompts.iter().cloned())
            .config(config)
            .seed(Seed::Torch(self.seed.unwrap_or(0)))
    }

    /// Serves the request as it was recorded.
    pub(crate) fn run(&self, model: &Model) -> Result<Generation, String> {
        model.generate(self.request(self.config()?)).map_err(|e| e.to_string())
    }

    /// Compares tokens and finish reasons.
    pub(crate) fn compare(&self, ours: &[Sequence]) -> Result<(), String> {
        if ours.len() != self.tokens.len() {
            return Err(format!("{} sequences instead of {}", ours.len(), self.tokens.len()));
        }
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
}

thread_local! {
    static MODELS: Recent<Model> = const { Recent::new() };
}

/// The model folder that a fixture names, computing in fp32.
pub(crate) fn model(folder: &Path) -> Result<Rc<Model>, String> {
    let load = |path: &Path| {
        mlx_genkit::Model::load(path, ComputeDtype::Float32).map_err(|e| e.to_string())
    };
    MODELS.with(|it| it.get(folder, load))
}

/// The cases of every `*.json` of `folder`, each of which names the one model that its cases run on.
pub(crate) fn on_one_model<C: DeserializeOwned + Send + 'static>(
    folder: &Path,
    asked: fn(&C) -> &Asked,
    check: fn(&C, &Model) -> Outcome,
) -> Vec<Case> {
    #[derive(Deserialize)]
    struct Fixture<C> {
        /// Relative to the fixture's folder.
        model: String,
        cases: Vec<C>,
    }

    files::suites(folder, |path, suite| {
        let fixture: Fixture<C> = files::read(path)?;
        let folder = folder.join(&fixture.model);
        let case = |case: C| {
            let (name, folder) = (asked(&case).name.clone(), folder.clone());
            Case::new(suite, name, move || check(&case, &*model(&folder)?))
        };
        Ok(fixture.cases.into_iter().map(case).collect())
    })
}
