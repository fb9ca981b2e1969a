//! What logits say of one token each.

use mlx_rs::{Array, Dtype};

use crate::{Error, Result, backend::Backend};

/// For each row of `logits`, `[rows, vocabulary]`, the log-probability of its id among `ids`, u32
/// `[rows]`: fp32 `[rows]`, `logit - log Σ e^logit`, in fp32 whatever the logits are. An id outside of
/// the vocabulary gives NaN on the CPU, and an undefined number elsewhere.
///
/// # Errors
/// When the shapes do not fit.
pub fn token_logprobs(logits: &Array, ids: &Array) -> Result<Array> {
    let failed = |e| Error::mlx("taking log-probabilities of tokens", &e);
    let logits = logits.as_dtype(Dtype::Float32).map_err(failed)?;
    Backend::new(Dtype::Float32)?.token_logprobs(&logits, ids).map_err(failed)
}
