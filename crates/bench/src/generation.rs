//! A greedy request with a clock beside it.

use std::time::{Duration, Instant};

use mlx_genkit::{GenerationConfig, Model, Request};

use crate::Result;

/// A request that was timed.
#[derive(Debug, Clone)]
pub struct Timed {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// From the request to its first token, which the whole prompt comes before.
    pub first: Duration,
    /// From the first token to the last.
    pub rest: Duration,
}

impl Timed {
    /// Tokens per second after the first; 0 where there are none.
    pub fn decoded_per_second(&self) -> f64 {
        let steps = self.tokens.len().saturating_sub(1);
        if steps == 0 { 0.0 } else { steps as f64 / self.rest.as_secs_f64() }
    }
}

/// Continues `prompt` by `new_tokens`, fewer only where the model ends sooner.
///
/// # Errors
/// When the prompt does not fit the model, or the model fails.
pub fn time(model: &Model, prompt: &[u32], new_tokens: usize) -> Result<Timed> {
    let config = GenerationConfig {
        do_sample: Some(false),
        max_new_tokens: Some(new_tokens),
        ..Default::default()
    };
    let begun = Instant::now();
    let mut tokens = Vec::with_capacity(new_tokens);
    let (mut first, mut last) = (begun, begun);
    for piece in model.stream(Request::new(prompt.to_vec()).config(config))? {
        let token = piece?.token;
        last = Instant::now();
        if tokens.is_empty() {
            first = last;
        }
        tokens.push(token);
    }
    Ok(Timed { tokens, first: first - begun, rest: last - first })
}
