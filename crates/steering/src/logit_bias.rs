//! Steering of scores that no hook reaches: W·v, computed once, as a logits processor.

use mlx_rs::{Array, Dtype};
use mlxgk_logits_processors::{
    Context, Error as ProcessorError, ErrorKind as ProcessorErrorKind, LogitsProcessor, Stage,
};
use mlxgk_mlx_models::{Decoder, HookPoint};

use crate::{Conflict, Error, ErrorKind, Operation, Positions, Result, Schedule, Steering};

/// Adds alpha · W v to the scores, `W` being the model's head: what a steering at the final norm does,
/// where scores come from elsewhere than this crate's hook, such as a server or a compiled graph.
///
/// Positions and schedules mean what they mean to a hook: the token in question is the last one of
/// the text, whose scores these are. Where the model caps its logits (Gemma 2), the cap is undone
/// before and applied after, so that the bias comes in where it would under a hook.
///
/// Every model here takes hooks, and a hook at the final norm is cheaper: `hidden` additions per token
/// instead of one per vocabulary entry. Prefer [`Steering::hook`] where there is a choice.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
/// use mlxgk_steering::{HookPoint, Injection, Steering, SteeringVectors};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let vectors = SteeringVectors::new([(HookPoint::FinalNorm, vec![0.1; model.hidden_size()])])?;
/// let steering = Steering::from(Injection::new(vectors, 1.0));
/// let mut hook = steering.hook(&model)?;
/// let steered = model.forward(&[&[5]], &mut model.new_cache(1), &mut hook)?;
/// let plain = model.forward(&[&[5]], &mut model.new_cache(1), &mut NoHook)?;
///
/// let mut scores = plain.to_vec_exact::<f32>()?;
/// steering.logit_bias(&model)?.process(&Context::new(&[5], 1), &mut scores)?;
/// let steered = steered.to_vec_exact::<f32>()?;
/// assert!(scores.iter().zip(&steered).all(|(a, b)| (a - b).abs() < 1e-4));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct LogitBias {
    parts: Vec<Part>,
    cap: Option<f32>,
}

#[derive(Debug, Clone)]
struct Part {
    /// alpha · W v.
    bias: Vec<f32>,
    positions: Positions,
    schedule: Schedule,
}

impl LogitBias {
    pub(crate) fn new(steering: &Steering, model: &Decoder) -> Result<Self> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Conflict, what));
        if steering.budget.is_some() {
            return refuse("a KL budget needs a hook; a logit bias cannot keep to it".into());
        }
        if steering.conflict != Conflict::Sum && steering.injections.len() > 1 {
            return refuse("priorities need a hook; biases on logits always add up".into());
        }
        let mut parts = Vec::new();
        for injection in &steering.injections {
            if !matches!(injection.operation, Operation::Add | Operation::AddUnit) {
                let operation = injection.operation;
                return refuse(format!("{operation} needs a hook; a logit bias can only add"));
            }
            for vectors in &injection.vectors {
                let vector = vectors.for_logits();
                let unit = match injection.operation {
                    Operation::AddUnit => vector.norm(HookPoint::FinalNorm).recip(),
                    _ => 1.0,
                };
                let values = vector.get(HookPoint::FinalNorm).unwrap_or_default();
                let scale = (injection.alpha * unit) as f32;
                let scaled: Vec<f32> = values.iter().map(|it| it * scale).collect();
                let scaled = Array::from_slice(&scaled, &[1, values.len() as i32]);
                let bias = model.unembed(&scaled.as_dtype(model.dtype())?)?;
                let bias = bias.as_dtype(Dtype::Float32)?.contiguous()?;
                let bias = bias.try_as_slice().map_err(|e| {
                    Error::new(ErrorKind::Run, format!("the bias cannot be read: {e}"))
                })?;
                parts.push(Part {
                    bias: bias.to_vec(),
                    positions: injection.positions.clone(),
                    schedule: injection.schedule.clone(),
                });
            }
        }
        Ok(Self { parts, cap: model.components().logit_cap })
    }
}

impl LogitsProcessor for LogitBias {
    fn name(&self) -> &'static str {
        "LogitBias"
    }

    /// Before everything that bans or penalizes: the bias belongs to the model's own scores.
    fn stage(&self) -> Stage {
        Stage::Guidance
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<(), ProcessorError> {
        let Context { tokens, prompt_len, padding, .. } = *context;
        let Some(&last) = tokens.last() else { return Ok(()) };
        let position = (tokens.len() - 1).saturating_sub(padding);
        let prompt = prompt_len.saturating_sub(padding);
        let mut factors = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            if part.bias.len() != scores.len() {
                let (bias, scores) = (part.bias.len(), scores.len());
                let what =
                    format!("the logit bias has {bias} entries, but there are {scores} scores");
                return Err(ProcessorError::new(ProcessorErrorKind::Parameter, what));
            }
            let selected = part.positions.selects(last, position, prompt);
            let selected = selected
                .map_err(|e| ProcessorError::new(ProcessorErrorKind::Parameter, e.to_string()))?;
            let t = tokens.len().saturating_sub(prompt_len);
            factors.push(if selected { part.schedule.factor(t) as f32 } else { 0.0 });
        }
        if factors.iter().all(|it| *it == 0.0) {
            return Ok(());
        }
        for (id, score) in scores.iter_mut().enumerate() {
            let parts = self.parts.iter().zip(&factors);
            let bias: f32 = parts.map(|(part, factor)| factor * part.bias[id]).sum();
            *score = match self.cap {
                None => *score + bias,
                // A ban, or a score at the end of what the cap can give, which has no inverse.
                Some(cap) if score.is_nan() || score.abs() >= cap => continue,
                Some(cap) => cap * (((*score / cap).atanh() * cap + bias) / cap).tanh(),
            };
        }
        Ok(())
    }
}
