//! Scoring a given text: how likely the model finds it.

use mlxgk_decoding_strategies::TokenLogprobs;
use mlxgk_mlx_models::{NoHook, ResidualHook};

use crate::{Error, ErrorKind, Model, Request, Result, row_adapters::RowAdapters};

/// Log-probabilities of a given text.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let usual = model.score(Request::new("Once upon a time"))?;
/// let unusual = model.score(Request::new("Once time a upon"))?;
/// assert!(usual.sum() > unusual.sum());
/// let mean = usual.sum() / usual.logprobs.len() as f64;
/// assert!((usual.perplexity().unwrap() - (-mean).exp()).abs() < 1e-6);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Scored {
    /// The tokens scored.
    pub tokens: Vec<u32>,
    /// log p(token i + 1 | tokens up to i): natural logarithm, fp32, one value fewer than tokens.
    pub logprobs: Vec<f32>,
    /// For each of `logprobs`, the likeliest tokens at its place and their log-probabilities, best
    /// first, as many as [`Request::logprobs`] asked for.
    pub top: Vec<Vec<(u32, f32)>>,
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

impl Model {
    /// Scores the request's prompt: the log-probability of each token given those before it. Of the
    /// request, the hook, the steering, the adapter and [`logprobs`](Request::logprobs) count.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let scored = model.score(Request::new("Once upon a time").logprobs(2))?;
    /// assert_eq!(scored.logprobs.len(), scored.tokens.len() - 1);
    /// assert!(scored.top.iter().zip(&scored.logprobs).all(|(top, it)| top[0].1 >= *it));
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the prompt is wrong, there are several, or the model fails.
    pub fn score(&self, request: Request<'_>) -> Result<Scored> {
        let [prompt] = &request.prompts[..] else {
            let what =
                format!("one text is scored at a time, but there are {}", request.prompts.len());
            return Err(Error::new(ErrorKind::Request, what));
        };
        let tokens = prompt.ids(self)?;
        let mut hook: Box<dyn ResidualHook + '_> = request.hook.unwrap_or(Box::new(NoHook));
        if let Some(steering) = request.steering {
            hook = Box::new((steering.hook(self.decoder())?, hook));
        }
        if let Some(adapters) = RowAdapters::new(request.adapters, [1, 1], self)? {
            hook = Box::new((hook, adapters));
        }
        let top = request.logprobs.unwrap_or(0);
        let found = mlxgk_decoding_strategies::score(self.decoder(), &tokens, top, &mut hook)?;
        if let Some(at) = found.iter().position(|it| !it.logprob.is_finite()) {
            let what = format!(
                "the log-probability of token {} is {}: the weights are damaged, or too large for \
                 their dtype",
                at + 1,
                found[at].logprob
            );
            return Err(Error::new(ErrorKind::Run, what));
        }
        let split = |it: TokenLogprobs| (it.logprob, it.top);
        let (logprobs, top) = found.into_iter().map(split).unzip();
        Ok(Scored { tokens, logprobs, top })
    }
}
