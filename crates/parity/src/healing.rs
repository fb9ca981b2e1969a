//! Token healing: what prompts become, and what is generated after them; see `xtask/record/healing.py`.

use std::path::Path;

use mlx_genkit::Model;
use serde::Deserialize;

use crate::{
    Case as Named, Outcome,
    asked::{self, Asked},
};

/// The cases of every `*.json` of `folder`, on the model folders they name.
pub(crate) fn cases(folder: &Path) -> Vec<Named> {
    asked::on_one_model(folder, |it: &Case| &it.asked, Case::check)
}

#[derive(Deserialize)]
struct Case {
    #[serde(flatten)]
    asked: Asked,
    /// The prompts as they became.
    healed: Vec<Vec<u32>>,
}

impl Case {
    fn check(&self, model: &Model) -> Outcome {
        let ours = self.asked.run(model)?;
        if ours.healed_prompts != self.healed {
            let ours = ours.healed_prompts;
            return Err(format!("prompts became {ours:?} instead of {:?}", self.healed));
        }
        self.asked.compare(&ours.sequences).map(|()| 0.0)
    }
}
