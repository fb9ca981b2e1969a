//! Losses over pairs of answers, one preferred to the other, or over single answers that are liked or
//! not. All take log-probabilities of whole answers, `[pairs]` or `[answers]`.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{exp, log1p, maximum, mean, select, sigmoid},
};

use super::{log_sigmoid, number};

/// The shape of a DPO loss, of the margin Δ = (log π_c - log ref_c) - (log π_r - log ref_r).
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::losses::{Dpo, DpoLoss};
///
/// // A margin of 2, and β = 0.5.
/// let logprobs = [-1.0_f32, -3.0, -2.0];
/// let [chosen, rejected, reference] = logprobs.map(|it| Array::from_slice(&[it], &[1]));
/// let of = |loss| {
///     let dpo = Dpo { beta: 0.5, label_smoothing: 0.0, loss };
///     dpo.loss([&chosen, &rejected], [&reference, &reference]).map(|it| it.item_exact::<f32>())
/// };
/// assert!((of(DpoLoss::Sigmoid)? - (1.0 + (-1f32).exp()).ln()).abs() < 1e-6);
/// assert_eq!(of(DpoLoss::Hinge)?, 0.0); // max(0, 1 - 0.5 · 2)
/// assert_eq!(of(DpoLoss::Ipo)?, 1.0); // (2 - 1 / (2 · 0.5))²
/// # Ok::<(), mlx_rs::error::Exception>(())
/// ```
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
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::losses::Dpo;
///
/// let logprobs = |it: f32| Array::from_slice(&[it], &[1]);
/// let dpo = Dpo::default();
/// let loss = |chosen: f32, rejected: f32| {
///     let [chosen, rejected, reference] = [chosen, rejected, -4.0].map(logprobs);
///     dpo.loss([&chosen, &rejected], [&reference; 2]).map(|it| it.item_exact::<f32>())
/// };
/// assert!(loss(-3.0, -5.0)? < loss(-4.0, -4.0)?);
/// // What the chosen answer has gained over the reference, times β.
/// let reward = dpo.reward(&logprobs(-3.0), &logprobs(-4.0))?.item_exact::<f32>();
/// assert!((reward - 0.1).abs() < 1e-6);
/// # Ok::<(), mlx_rs::error::Exception>(())
/// ```
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
