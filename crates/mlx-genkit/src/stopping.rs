//! The criteria that a request's fields ask for.

use std::time::{Duration, Instant};

use mlxgk_decoding_strategies::{self as strategies, FinishReason, MaxTime, StoppingCriterion};
use mlxgk_generation_config::Resolved;
use mlxgk_logits_processors::Context;
use mlxgk_tokenizer_bridge::StopStrings;

use crate::{Error, Model, Result};

/// The criteria in HF's order: the clock, stop strings, the caller's own.
pub(crate) fn criteria(
    resolved: &Resolved,
    model: &Model,
    own: Vec<Box<dyn StoppingCriterion>>,
    begun: Instant,
) -> Result<Vec<Box<dyn StoppingCriterion>>> {
    let mut all: Vec<Box<dyn StoppingCriterion>> = Vec::new();
    if let Some(seconds) = resolved.config.max_time {
        let limit = Duration::try_from_secs_f64(seconds).map_err(|_| {
            let what = format!("`max_time` must be a number of seconds, but is {seconds}");
            Error::of_field("max_time", what)
        })?;
        all.push(Box::new(MaxTime::new(begun, limit)));
    }
    let strings = stop_strings(resolved);
    if resolved.config.stop_strings.is_some() {
        let tokenizer = model.shared_tokenizer().ok_or_else(|| {
            let what = format!(
                "`stop_strings` are looked for in the text, but {} has no tokenizer.json",
                model.name()
            );
            Error::of_field("stop_strings", what)
        })?;
        all.push(Box::new(AtStrings(StopStrings::new(&tokenizer, strings)?)));
    }
    all.extend(own);
    Ok(all)
}

/// The strings to stop at.
pub(crate) fn stop_strings(resolved: &Resolved) -> Vec<String> {
    resolved.config.stop_strings.as_ref().map_or_else(Vec::new, |it| it.as_slice().to_vec())
}

/// Ends a row at a string.
struct AtStrings(StopStrings);

impl StoppingCriterion for AtStrings {
    fn ends(&mut self, context: &Context<'_>) -> strategies::Result<Option<FinishReason>> {
        let found = self
            .0
            .end(context.tokens)
            .map_err(|e| strategies::Error::new(strategies::ErrorKind::Criterion, e.to_string()))?;
        Ok(found.then_some(FinishReason::StopString))
    }
}
