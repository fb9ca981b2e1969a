//! Rotating and quantized caches: the tokens that mlx-lm generates with them, and how far each width of
//! a quantized one is off; see `xtask/record/caches.py`.

use std::path::Path;

use mlx_genkit::{
    Model, NoHook, Request,
    kv_cache::{CacheOptions, KvCache, Quantization},
    logits_processors::log_softmax,
};
use serde::Deserialize;

use crate::{
    Case as Named, Outcome,
    asked::{self, Asked},
};

/// How far a token's log-probability may be off, and how far the error of a width: two fp32 models
/// that add up in other orders, on numbers that are rounded to a few bits in between.
pub(crate) const TOLERANCE: f64 = 1e-3;

/// The cases of every `*.json` of `folder`, on the model folders they name.
pub(crate) fn cases(folder: &Path) -> Vec<Named> {
    asked::on_one_model(folder, |it: &Case| &it.asked, Case::check)
}

#[derive(Deserialize)]
struct Case {
    #[serde(flatten)]
    asked: Asked,
    logprobs: Vec<Vec<f64>>,
    error: Option<Lossy>,
}

/// The error of a quantized cache.
#[derive(Deserialize)]
struct Lossy {
    text: Vec<u32>,
    worst: f64,
}

impl Case {
    /// The worst error of a log-probability, with the rows in one batch and each alone.
    fn check(&self, model: &Model) -> Outcome {
        let mut worst = 0.0_f64;
        for chunk in [None, Some(5)] {
            let mut config = self.asked.config()?;
            // A pass sees all of itself in the format that it begins with.
            let in_parts = config.quantized_kv_start.is_none();
            config.prefill_chunk_size = chunk.filter(|_| in_parts);
            let request: Request<'_> = self.asked.request(config);
            let ours = model.generate(request.logprobs(1)).map_err(|e| e.to_string())?.sequences;
            self.asked.compare(&ours).map_err(|e| format!("chunks of {chunk:?}: {e}"))?;
            for (at, (ours, theirs)) in ours.iter().zip(&self.logprobs).enumerate() {
                let ours = ours.recorded.logprobs.iter().map(|it| f64::from(it.logprob));
                for (step, (ours, theirs)) in ours.zip(theirs).enumerate() {
                    let error = (ours - theirs).abs();
                    if error.is_nan() || error > TOLERANCE {
                        return Err(format!(
                            "sequence {at}, token {step}: log-probability {ours} instead of {theirs}"
                        ));
                    }
                    worst = worst.max(error);
                }
            }
        }
        match &self.error {
            Some(lossy) => Ok(worst.max(lossy.check(model, &self.asked)?)),
            None => Ok(worst),
        }
    }
}

impl Lossy {
    fn check(&self, model: &Model, asked: &Asked) -> Outcome {
        let config = asked.config()?;
        let number = |it: Option<usize>| it.and_then(|it| i32::try_from(it).ok());
        let (Some(group), Some(bits)) = (number(config.kv_group_size), number(config.kv_bits))
        else {
            return Err("an error of a cache that is not quantized".into());
        };
        let how = Quantization::new(group, bits).map_err(|e| e.to_string())?;
        let options = CacheOptions::new().quantized(how);
        let mut packed =
            model.decoder().new_cache_with(&[0], &options).map_err(|e| e.to_string())?;
        let mut plain = model.decoder().new_cache(1);
        let mut worst = 0.0_f32;
        for token in self.text.chunks(1) {
            let (packed, plain) =
                (after(model, token, &mut packed)?, after(model, token, &mut plain)?);
            let errors = packed.iter().zip(&plain).map(|(a, b)| (a - b).abs());
            worst = errors.fold(worst, f32::max);
        }
        let off = (f64::from(worst) - self.worst).abs();
        if off.is_nan() || off > TOLERANCE {
            return Err(format!("{bits} bits are off by {worst} instead of {}", self.worst));
        }
        Ok(off)
    }
}

/// The log-probabilities after a token.
fn after(model: &Model, token: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, String> {
    let logits =
        model.decoder().forward(&[token], cache, &mut NoHook).map_err(|e| e.to_string())?;
    let logits = logits.try_as_slice::<f32>().map_err(|e| e.to_string())?;
    let mut row = logits.to_vec();
    log_softmax(&mut row).map_err(|e| e.to_string())?;
    Ok(row)
}
