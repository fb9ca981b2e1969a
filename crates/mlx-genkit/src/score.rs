//! Scoring a given text: what the model would have thought of it.

use mlxgk_mlx_models::ResidualHook;

use crate::{Error, ErrorKind, Model, Prompt, Result};

/// Log-probabilities of a given text.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The tokens scored.
    pub tokens: Vec<u32>,
    /// log p(token i + 1 | tokens up to i): natural logarithm, fp32, one value fewer than tokens.
    pub logprobs: Vec<f32>,
}

impl Scored {
    /// The log-probability of the whole text after its first token.
    pub fn sum(&self) -> f64 {
        // Not `sum`, which is -0 for no summands.
        self.logprobs.iter().fold(0.0, |sum, &it| sum + f64::from(it))
    }

    /// `exp(-mean log p)`; `None` for a single token, which predicts nothing.
    pub fn perplexity(&self) -> Option<f64> {
        (!self.logprobs.is_empty()).then(|| (-self.sum() / self.logprobs.len() as f64).exp())
    }
}

/// Scores a prompt: the log-probability of each token given those before it.
///
/// # Errors
/// When the prompt is wrong or the model fails.
pub fn score(model: &Model, prompt: &Prompt, hook: &mut dyn ResidualHook) -> Result<Scored> {
    let tokens = prompt.ids(model)?;
    let logprobs = mlxgk_decoding_strategies::score(model.decoder(), &tokens, hook)?;
    match logprobs.iter().position(|it| !it.is_finite()) {
        Some(at) => {
            let what = format!(
                "the log-probability of token {} is {}: the weights are damaged, or too large for \
                 their dtype",
                at + 1,
                logprobs[at]
            );
            Err(Error::new(ErrorKind::Run, what))
        }
        None => Ok(Scored { tokens, logprobs }),
    }
}
