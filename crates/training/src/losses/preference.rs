//! Losses over pairs of answers, one preferred to the other, or over single answers that are liked or
//! not. All take log-probabilities of whole answers, `[pairs]` or `[answers]`.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{exp, log1p, maximum, mean, select, sigmoid},
};

use super::{log_sigmoid, number};

/// The shape of a DPO loss, of the margin Δ = (log π_c - log ref_c) - (log π_r - log ref_r).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DpoLoss {
    /// `-log σ(β Δ)` (Rafailov et al., 2023), or with label smoothing ε
    /// `-(1 - ε) log σ(β Δ) - ε log σ(-β Δ)` (cDPO).
    #[default]
    Sigmoid,
    /// `max(0, 1 - β Δ)`.
    Hinge,
    /// `(Δ - 1 / (2 β))²`, of log-probabilities that are means over an answer's tokens (IPO).
    Ipo,
}

/// Direct preference optimization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpo {
    /// How strongly the policy is held to the reference; TRL's default is 0.1.
    pub beta: f32,
    /// How likely a preference is the wrong way round.
    pub label_smoothing: f32,
    /// The shape.
    pub loss: DpoLoss,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 0.1, label_smoothing: 0.0, loss: DpoLoss::Sigmoid }
    }
}

impl Dpo {
    /// The mean loss over all pairs, a scalar. `policy` and `reference` are the log-probabilities of the
    /// chosen and of the rejected answers, `[pairs]` each: sums over their tokens, for
    /// [`DpoLoss::Ipo`] means.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn loss(&self, policy: [&Array; 2], reference: [&Array; 2]) -> MlxResult<Array> {
        let ratio = |which: usize| policy[which].subtract(reference[which]);
        let margin = ratio(0)?.subtract(ratio(1)?)?;
        let scaled = margin.multiply(number(self.beta))?;
        let losses = match self.loss {
            DpoLoss::Sigmoid => {
                let (keep, flip) =
                    (number(1.0 - self.label_smoothing), number(self.label_smoothing));
                let right = log_sigmoid(&scaled)?.multiply(keep)?;
                right.add(log_sigmoid(&scaled.negative()?)?.multiply(flip)?)?.negative()?
            }
            DpoLoss::Hinge => maximum(number(1.0).subtract(&scaled)?, number(0.0))?,
            DpoLoss::Ipo => margin.subtract(number(0.5 / self.beta))?.square()?,
        };
        mean(losses, None)
    }

    /// β · (log π - log ref) of an answer: what DPO takes for its reward.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn reward(&self, policy: &Array, reference: &Array) -> MlxResult<Array> {
        policy.subtract(reference)?.multiply(number(self.beta))
    }
}

/// ORPO (Hong et al., 2024): `nll - β · mean log σ(log odds ratio)`, a scalar, of log-probabilities that are
/// means over an answer's tokens. `nll` is the cross-entropy of the chosen answers.
///
/// # Errors
/// When the shapes do not fit.
pub fn orpo_loss(nll: &Array, chosen: &Array, rejected: &Array, beta: f32) -> MlxResult<Array> {
    let log_odds = |it: &Array| it.subtract(log1p(exp(it)?.negative()?)?);
    let ratio = log_odds(chosen)?.subtract(log_odds(rejected)?)?;
    nll.subtract(mean(log_sigmoid(&ratio)?, None)?.multiply(number(beta))?)
}

/// SimPO (Meng et al., 2024): `-log σ(β (log π_c - log π_r) - γ)` of log-probabilities that are means over an
/// answer's tokens; needs no reference.
///
/// # Errors
/// When the shapes do not fit.
pub fn simpo_loss(chosen: &Array, rejected: &Array, beta: f32, gamma: f32) -> MlxResult<Array> {
    let margin = chosen.subtract(rejected)?.multiply(number(beta))?.subtract(number(gamma))?;
    mean(log_sigmoid(&margin)?, None)?.negative()
}

/// KTO (Ethayarajh et al., 2024): the mean over answers of `1 - σ(β (r - z))` where one is liked and
/// `1 - σ(β (z - r))` where it is not, with r = log π - log ref of the answer (sums over its tokens).
/// `liked` holds booleans, and `kl` is z, the policy's mean divergence from the reference on answers to
/// other prompts, through which no gradient is taken; below 0 it counts as 0.
///
/// # Errors
/// When the shapes do not fit.
pub fn kto_loss(
    policy: &Array,
    reference: &Array,
    liked: &Array,
    kl: f32,
    beta: f32,
) -> MlxResult<Array> {
    let above =
        policy.subtract(reference)?.subtract(number(kl.max(0.0)))?.multiply(number(beta))?;
    let value = sigmoid(select(liked, &above, above.negative()?)?)?;
    mean(number(1.0).subtract(value)?, None)
}
