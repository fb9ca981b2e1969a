//! Losses as functions of logits or log-probabilities: no model, no batch, all differentiable.

mod kl;
mod policy;
mod preference;
mod token;

pub use self::kl::{KlEstimator, kl_divergence};
pub use self::policy::{Grpo, Reduction, group_advantages};
pub use self::preference::{Dpo, DpoLoss, kto_loss, orpo_loss, simpo_loss};
pub(crate) use self::token::{check_smoothing, smoothed};
pub use self::token::{selective_log_softmax, stable_softmax, xent_loss};

use mlx_rs::{Array, error::Result, ops::logaddexp};

/// `log σ(x) = -log(1 + exp(-x))`, without overflow.
pub(crate) fn log_sigmoid(x: &Array) -> Result<Array> {
    logaddexp(x.negative()?, Array::from_f32(0.0))?.negative()
}

pub(crate) fn number(value: f32) -> Array {
    Array::from_f32(value)
}
