//! The head and the loss on it, a few predicted tokens at a time.
//!
//! Logits are the largest thing in training: fp32, tokens times vocabulary, and several times that in
//! the backward pass. Here they exist for one chunk of predicted tokens at a time, and for tokens that
//! are not predicted never. The chunk's gradient by the states below the head is taken at once, so
//! nothing of a chunk outlives it.

use std::ops::Range;

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::concatenate,
    transforms::{eval, fallible_vjp, value_and_grad},
};
use mlxgk_mlx_models::Decoder;

use crate::{
    Error, Result,
    losses::{selective_log_softmax, smoothed},
};

/// Logits that are held at a time where nothing else is asked for: 128 MiB of fp32.
const CHUNK_LOGITS: usize = 1 << 25;

/// What is minimized.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
/// use mlxgk_training::{Batch, Example, GradientOptions, Objective, Trainee};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut trainee = Trainee::new(&mut model).vectors(&[1])?;
/// let batch = Batch::new(&[Example::completion(&[5, 9], &[14, 7])])?;
/// // Twice the negative log-likelihood of the answer.
/// let twice = |logprobs: &Array| Ok(logprobs.sum(None)?.multiply(Array::from_f32(-2.0))?);
/// let options = GradientOptions { objective: Objective::LogProbs(&twice), ..Default::default() };
/// let own = trainee.gradients(&batch, options, &mut NoHook)?.loss;
/// let sum = trainee.gradients(&batch, GradientOptions::default(), &mut NoHook)?.loss;
/// assert!((own - 2.0 * sum).abs() < 1e-3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
pub enum Objective<'o> {
    /// The sum of the predicted tokens' cross-entropies, with label smoothing.
    CrossEntropy {
        /// torch's `label_smoothing`.
        smoothing: f32,
    },
    /// A scalar function of the predicted tokens' log-probabilities, `[predicted]` in the batch's
    /// [order](crate::Batch::row_of): the losses over preferences and policies.
    LogProbs(&'o dyn Fn(&Array) -> Result<Array>),
}

impl std::fmt::Debug for Objective<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CrossEntropy { smoothing } => {
                write!(f, "CrossEntropy {{ smoothing: {smoothing} }}")
            }
            Self::LogProbs(_) => f.write_str("LogProbs"),
        }
    }
}

/// The head's part of a pass: the ids predicted from some states, and how they are judged.
#[derive(Debug)]
pub(crate) struct Head<'o> {
    pub(crate) targets: Vec<u32>,
    pub(crate) objective: Objective<'o>,
    /// What the loss is multiplied by before a gradient is taken.
    pub(crate) scale: f32,
    /// Predicted tokens per chunk.
    pub(crate) chunk: usize,
}

/// What the head says of a pass.
#[derive(Debug)]
pub(crate) struct Judged {
    /// The loss, not scaled.
    pub(crate) loss: f64,
    /// By each predicted token's term, of the scaled loss.
    weights: Vec<f32>,
    /// The scaled loss's gradient by the states, `[predicted, hidden]` in their dtype.
    pub(crate) by_states: Array,
}

impl Head<'_> {
    /// The chunk size to use: what is asked for, or what keeps logits within bounds.
    pub(crate) fn chunk_size(asked: Option<usize>, vocab: usize) -> usize {
        asked.unwrap_or(CHUNK_LOGITS / vocab.max(1)).max(1)
    }

    /// The loss, and its gradient by `states`, `[predicted, hidden]`. What comes back depends on no
    /// array of a graph under way.
    pub(crate) fn judge(&self, decoder: &Decoder, states: &Array) -> Result<Judged> {
        let (weights, mut loss) = match self.objective {
            Objective::CrossEntropy { .. } => (vec![self.scale; self.targets.len()], 0.0),
            Objective::LogProbs(objective) => self.weigh(decoder, states, objective)?,
        };
        let mut parts = Vec::new();
        for range in self.ranges() {
            let by = [rows(states, &range)?];
            let targets = self.targets(&range);
            let terms = |by: &[Array]| Ok(vec![self.terms(decoder, &by[0], &targets)?]);
            let cotangent = slice(&weights, &range);
            let (terms, gradients) = fallible_vjp(terms, &by, &[cotangent])?;
            eval(terms.iter().chain(&gradients))?;
            if let Objective::CrossEntropy { .. } = self.objective {
                loss += sum(&host(&terms[0])?);
            }
            parts.push(detached(&gradients[0])?);
        }
        let parts: Vec<&Array> = parts.iter().collect();
        Ok(Judged { loss, weights, by_states: concatenate(&parts, 0)? })
    }

    /// The scaled loss's gradients by parameters that the head uses. `install` puts them in place.
    pub(crate) fn by_parameters(
        &self,
        judged: &Judged,
        states: &Array,
        parameters: &[Array],
        decoder: &mut Decoder,
        install: &mut dyn FnMut(&mut Decoder, &[Array]) -> Result<()>,
    ) -> Result<Vec<Array>> {
        let mut sums: Vec<Array> = Vec::new();
        for range in self.ranges() {
            let (by, targets) = (rows(states, &range)?, self.targets(&range));
            let terms = |parameters: &[Array]| {
                install(decoder, parameters).map_err(into_exception)?;
                Ok(vec![self.terms(decoder, &by, &targets)?])
            };
            let cotangent = slice(&judged.weights, &range);
            let (_, gradients) = fallible_vjp(terms, parameters, &[cotangent])?;
            sums = match sums.is_empty() {
                true => gradients,
                false => {
                    let pairs = sums.iter().zip(&gradients);
                    pairs.map(|(sum, it)| sum.add(it)).collect::<MlxResult<_>>()?
                }
            };
            eval(&sums)?;
        }
        Ok(sums)
    }

    /// How the loss changes with each log-probability, scaled, and the loss.
    fn weigh(
        &self,
        decoder: &Decoder,
        states: &Array,
        objective: &dyn Fn(&Array) -> Result<Array>,
    ) -> Result<(Vec<f32>, f64)> {
        let logprobs = self.logprobs(decoder, states)?;
        let logprobs = Array::from_slice(&logprobs, &[logprobs.len() as i32]);
        let scaled = |by: &[Array]| {
            let loss = objective(&by[0]).map_err(into_exception)?;
            Ok(vec![loss.multiply(Array::from_f32(self.scale))?])
        };
        let (values, gradients) = value_and_grad(scaled)(&[logprobs])?;
        eval(values.iter().chain(&gradients))?;
        let loss = f64::from(host(&values[0])?[0]) / f64::from(self.scale);
        Ok((host(&gradients[0])?, loss))
    }

    /// The log-probability of each predicted token.
    pub(crate) fn logprobs(&self, decoder: &Decoder, states: &Array) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(self.targets.len());
        for range in self.ranges() {
            let logits = decoder.logits(&rows(states, &range)?)?;
            all.extend(host(&selective_log_softmax(&logits, &self.targets(&range))?)?);
        }
        Ok(all)
    }

    /// Each predicted token's term: its smoothed cross-entropy, or its log-probability.
    fn terms(&self, decoder: &Decoder, states: &Array, targets: &Array) -> MlxResult<Array> {
        let logits = decoder.logits(states).map_err(into_exception)?;
        match self.objective {
            Objective::CrossEntropy { smoothing } => smoothed(&logits, targets, smoothing),
            Objective::LogProbs(_) => selective_log_softmax(&logits, targets),
        }
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (count, chunk) = (self.targets.len(), self.chunk);
        (0..count).step_by(chunk).map(move |start| start..count.min(start + chunk))
    }

    pub(crate) fn targets(&self, range: &Range<usize>) -> Array {
        Array::from_slice(&self.targets[range.clone()], &[range.len() as i32])
    }
}

/// Rows `range` of a matrix.
pub(crate) fn rows(matrix: &Array, range: &Range<usize>) -> MlxResult<Array> {
    let ids: Vec<u32> = range.clone().map(|it| it as u32).collect();
    matrix.take_axis(Array::from_slice(&ids, &[ids.len() as i32]), 0)
}

fn slice(values: &[f32], range: &Range<usize>) -> Array {
    Array::from_slice(&values[range.clone()], &[range.len() as i32])
}

/// The values of a float array.
pub(crate) fn host(array: &Array) -> Result<Vec<f32>> {
    let array = array.as_dtype(Dtype::Float32)?.contiguous()?;
    array.to_vec_exact().map_err(|e| Error::new(crate::ErrorKind::Run, e.to_string()))
}

/// A copy that no graph holds on to, and that holds on to none: while a gradient is taken, MLX keeps
/// what every array was made from.
pub(crate) fn detached(array: &Array) -> Result<Array> {
    Ok(Array::from_slice(&host(array)?, array.shape()).as_dtype(array.dtype())?)
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&it| f64::from(it)).sum()
}

/// An error on its way through one of MLX's closures.
pub(crate) fn into_exception(error: impl std::fmt::Display) -> mlx_rs::error::Exception {
    mlx_rs::error::Exception::custom(error.to_string())
}
