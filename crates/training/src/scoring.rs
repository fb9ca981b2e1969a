//! What a model says of a batch, without gradients.

use mlx_rs::{Array, Dtype};
use mlxgk_mlx_models::{Decoder, NoHook, ResidualHook};

use crate::{
    Batch, Objective, Result, Trainee,
    head::{Head, host, rows},
    losses::{KlEstimator, check_smoothing, kl_divergence, smoothed},
};

/// How the log-probabilities of a row's tokens become one number.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_training::{Batch, Example, LogprobReduction, sequence_logprob};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let batch = Batch::new(&[Example::completion(&[5, 17], &[30, 2])])?;
/// let sum = sequence_logprob(&model, &batch, LogprobReduction::Sum)?[0];
/// let mean = sequence_logprob(&model, &batch, LogprobReduction::Mean)?[0];
/// assert!((sum - 2.0 * mean).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogprobReduction {
    /// Their sum: the log-probability of the completion.
    Sum,
    /// Their mean; of a row without predicted tokens 0.
    #[default]
    Mean,
}

/// The log-probability of every predicted token, in the batch's [order](Batch::row_of).
///
/// # Errors
/// When the batch does not fit the model, or the model fails.
pub fn token_logprobs(
    model: &Decoder,
    batch: &Batch,
    hook: &mut dyn ResidualHook,
) -> Result<Vec<f32>> {
    let states = states(model, batch, hook)?;
    head(model, batch).logprobs(model, &states)
}

/// The log-probability of each row's predicted tokens, one number per row.
///
/// Labels stand at their own tokens' places; the shift is made here: the state *before* a token predicts
/// it. (The Python original expected labels that were shifted already.)
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_training::{Batch, Example, LogprobReduction, sequence_logprob, token_logprobs};
/// # use mlxgk_mlx_models::NoHook;
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let batch = Batch::new(&[Example::completion(&[5, 17], &[30, 2])])?;
/// // log p(30, 2 | 5, 17)
/// let sums = sequence_logprob(&model, &batch, LogprobReduction::Sum)?;
/// let each = token_logprobs(&model, &batch, &mut NoHook)?;
/// assert!((sums[0] - each[0] - each[1]).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`token_logprobs`].
pub fn sequence_logprob(
    model: &Decoder,
    batch: &Batch,
    reduction: LogprobReduction,
) -> Result<Vec<f32>> {
    let of_tokens = token_logprobs(model, batch, &mut NoHook)?;
    Ok(by_row(batch, &of_tokens, reduction))
}

impl Trainee<'_> {
    /// The log-probability of every predicted token, in the batch's [order](Batch::row_of), with all that
    /// is trained in place: a soft prompt and vectors, too.
    ///
    /// # Errors
    /// When the batch does not fit the model, or the model fails.
    pub fn logprobs(&self, batch: &Batch, hook: &mut dyn ResidualHook) -> Result<Vec<f32>> {
        self.check(batch)?;
        if batch.supervised() == 0 {
            return Ok(Vec::new());
        }
        let columns = self.columns(batch);
        let columns: Vec<_> = columns.iter().map(Vec::as_slice).collect();
        let layers = 0..self.decoder.layers().len();
        let embedded = self.embed(batch)?;
        let hidden = self.decoder.run_layers(layers, &embedded, &columns, &mut self.hook(hook))?;
        let places = batch.states(self.before());
        let places = Array::from_slice(&places, &[places.len() as i32]);
        let states = hidden.reshape(&[-1, hidden.dim(-1)])?.take_axis(places, 0)?;
        head(self.decoder, batch).logprobs(self.decoder, &states)
    }
}

/// How far `model`'s next-token distributions p are from `reference`'s q, averaged over the predicted
/// tokens of each row.
///
/// # Errors
/// When the batch does not fit one of the models, their vocabularies differ, or one fails.
pub fn token_kl(
    model: &Decoder,
    reference: &Decoder,
    batch: &Batch,
    estimator: KlEstimator,
) -> Result<Vec<f32>> {
    if model.vocab_size() != reference.vocab_size() {
        let (own, other) = (model.vocab_size(), reference.vocab_size());
        let what = format!("the models have vocabularies of {own} and of {other} tokens");
        return Err(crate::Error::config(what));
    }
    let (p, q) = (states(model, batch, &mut NoHook)?, states(reference, batch, &mut NoHook)?);
    let head = head(model, batch);
    let mut of_tokens = Vec::with_capacity(batch.supervised());
    for range in head.ranges() {
        let p = model.logits(&rows(&p, &range)?)?;
        let q = reference.logits(&rows(&q, &range)?)?;
        of_tokens.extend(host(&kl_divergence(&p, &q, &head.targets(&range), estimator)?)?);
    }
    Ok(by_row(batch, &of_tokens, LogprobReduction::Mean))
}

/// The mean cross-entropy of the predicted tokens, with label smoothing; 0 where none is predicted.
///
/// # Errors
/// As [`token_logprobs`], and when the smoothing is outside 0 to 1.
pub fn loss_forward(
    model: &Decoder,
    batch: &Batch,
    smoothing: f32,
    hook: &mut dyn ResidualHook,
) -> Result<f64> {
    check_smoothing(smoothing)?;
    let states = states(model, batch, hook)?;
    let head = head(model, batch);
    let mut sum = 0.0;
    for range in head.ranges() {
        let logits = model.logits(&rows(&states, &range)?)?;
        let terms = host(&smoothed(&logits, &head.targets(&range), smoothing)?)?;
        sum += terms.iter().map(|&it| f64::from(it)).sum::<f64>();
    }
    Ok(sum / batch.supervised().max(1) as f64)
}

fn by_row(batch: &Batch, of_tokens: &[f32], reduction: LogprobReduction) -> Vec<f32> {
    let mut sums = vec![0.0_f64; batch.rows()];
    batch.row_of().zip(of_tokens).for_each(|(row, &it)| sums[row] += f64::from(it));
    let count = |row: usize, counts: &[usize]| match reduction {
        LogprobReduction::Sum => 1.0,
        LogprobReduction::Mean => counts[row].max(1) as f64,
    };
    let counts = batch.counts();
    sums.iter().enumerate().map(|(row, sum)| (sum / count(row, &counts)) as f32).collect()
}

fn head<'o>(model: &Decoder, batch: &Batch) -> Head<'o> {
    Head {
        targets: batch.targets(),
        objective: Objective::CrossEntropy { smoothing: 0.0 },
        scale: 1.0,
        chunk: Head::chunk_size(None, model.vocab_size()),
    }
}

/// The states that predicted tokens are predicted from, `[predicted, hidden]`.
fn states(model: &Decoder, batch: &Batch, hook: &mut dyn ResidualHook) -> Result<Array> {
    batch.check(model.vocab_size(), model.max_positions())?;
    if batch.supervised() == 0 {
        return Ok(Array::from_slice::<f32>(&[], &[0, model.hidden_size() as i32])
            .as_dtype(Dtype::Float32)?);
    }
    let tokens: Vec<&[u32]> = batch.tokens.iter().map(Vec::as_slice).collect();
    let hidden = model.hidden(&tokens, &mut model.new_cache(batch.rows()), hook)?;
    let width = hidden.dim(-1);
    let places = batch.states(0);
    let places = Array::from_slice(&places, &[places.len() as i32]);
    Ok(hidden.reshape(&[-1, width])?.take_axis(places, 0)?)
}
