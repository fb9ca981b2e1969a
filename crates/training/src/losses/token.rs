//! What a row of logits says of one token.

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::{logsumexp_axis, softmax_axis},
};

use mlxgk_mlx_models::token_logprobs;

use super::number;
use crate::{Batch, Error, Example, Result, head::into_exception};

/// The log-probability of one token per row of logits: fp32 `[n]` for `logits` of `[n, vocabulary]` and
/// u32 `targets` of `[n]`, as `logit - logsumexp`, in fp32 whatever the logits are.
///
/// # Errors
/// When the shapes do not fit.
pub fn selective_log_softmax(logits: &Array, targets: &Array) -> MlxResult<Array> {
    token_logprobs(logits, targets).map_err(into_exception)
}

/// Cross-entropy per row with label smoothing ε, torch's
/// `(1 - ε) · (-log p_y) + ε · mean_k(-log p_k)`: fp32 `[n]`.
pub(crate) fn smoothed(logits: &Array, targets: &Array, smoothing: f32) -> MlxResult<Array> {
    let nll = selective_log_softmax(logits, targets)?.negative()?;
    if smoothing == 0.0 {
        return Ok(nll);
    }
    let logits = logits.as_dtype(Dtype::Float32)?;
    let all = logsumexp_axis(&logits, -1, false)?.subtract(logits.mean_axis(-1, false)?)?;
    nll.multiply(number(1.0 - smoothing))?.add(all.multiply(number(smoothing))?)
}

/// Mean cross-entropy over the labels that are not [`IGNORE_INDEX`](crate::IGNORE_INDEX), a scalar:
/// torch's `cross_entropy(logits[:, :-1], labels[:, 1:], ignore_index=-100, label_smoothing=ε)`. Where
/// all labels are ignored it is 0, where torch's is NaN.
///
/// `logits` is `[rows, tokens, vocabulary]`, and there is a label for each token, at the token's own
/// place. For a model's loss use [`loss_forward`](crate::loss_forward), which never holds all logits
/// at once.
///
/// # Errors
/// When the shapes do not fit, a label is outside the vocabulary, or the smoothing outside 0 to 1.
pub fn xent_loss(logits: &Array, labels: &[Vec<i32>], smoothing: f32) -> Result<Array> {
    check_smoothing(smoothing)?;
    let &[rows, tokens, vocab] = logits.shape() else {
        let what = format!("logits are [rows, tokens, vocabulary], found {:?}", logits.shape());
        return Err(Error::data(what));
    };
    if labels.len() != rows as usize || labels.iter().any(|it| it.len() != tokens as usize) {
        let what = format!("there are logits for {rows} rows of {tokens} tokens, but other labels");
        return Err(Error::data(what));
    }
    let example =
        |labels: &Vec<i32>| Example { tokens: vec![0; tokens as usize], labels: labels.clone() };
    let examples: Vec<Example> = labels.iter().map(example).collect();
    let batch = Batch::new(&examples)?;
    batch.check(vocab as usize, usize::MAX)?;
    if batch.supervised() == 0 {
        return Ok(number(0.0));
    }
    let targets = batch.targets();
    let states = batch.states(0);
    let count = targets.len() as i32;
    let logits = logits
        .reshape(&[rows * tokens, vocab])?
        .take_axis(Array::from_slice(&states, &[count]), 0)?;
    Ok(smoothed(&logits, &Array::from_slice(&targets, &[count]), smoothing)?.mean(None)?)
}

pub(crate) fn check_smoothing(smoothing: f32) -> Result<()> {
    if (0.0..=1.0).contains(&smoothing) {
        return Ok(());
    }
    Err(Error::config(format!("label smoothing is {smoothing}, must be from 0 to 1")))
}

/// Softmax over the last axis, computed in fp32 after the largest score is subtracted, so that neither
/// large nor half-precision scores overflow.
///
/// # Errors
/// When MLX fails.
pub fn stable_softmax(scores: &Array) -> MlxResult<Array> {
    softmax_axis(scores.as_dtype(Dtype::Float32)?, -1, true)
}
