//! Group relative policy optimization (Shao et al., 2024) and its relatives.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{exp, maximum, minimum},
};

use super::{kl::k3, number};
use crate::{Batch, Error, Result};

/// How the losses of tokens become one number.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{Batch, Example, losses::{Grpo, Reduction}};
///
/// // An answer of one token and one of three; only the first is rewarded.
/// let batch = Batch::new(&[
///     Example::completion(&[5], &[7]),
///     Example::completion(&[5], &[8, 9, 2]),
/// ])?;
/// let logprobs = Array::from_slice(&[-1.0_f32; 4], &[4]);
/// let loss = |reduction| {
///     let grpo = Grpo { reduction, ..Grpo::default() };
///     let loss = grpo.loss(&batch, &logprobs, &logprobs, None, &[1.0, 0.0])?;
///     Ok::<f32, mlxgk_training::Error>(loss.item_exact::<f32>())
/// };
/// assert_eq!(loss(Reduction::Answers)?, -0.5); // one of two answers
/// assert_eq!(loss(Reduction::Tokens)?, -0.25); // one of four tokens
/// assert_eq!(loss(Reduction::Constant(10))?, -0.05); // one of 2 · 10 places
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Reduction {
    /// The mean over answers of the mean over their tokens (GRPO).
    #[default]
    Answers,
    /// The mean over all tokens of the batch (BNPO).
    Tokens,
    /// The sum over all tokens, divided by answers times a longest length (Dr. GRPO).
    Constant(usize),
}

/// The clipped objective of GRPO (Shao et al., 2024) over the tokens of answers.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{Batch, Example, losses::{Grpo, group_advantages}};
///
/// let batch = Batch::new(&[Example::completion(&[5], &[7]), Example::completion(&[5], &[8])])?;
/// let advantages = group_advantages(&[1.0, 0.0], 2)?;
/// let old = Array::from_slice(&[-1.0_f32, -1.0], &[2]);
/// let loss = |policy: [f32; 2]| {
///     let policy = Array::from_slice(&policy, &[2]);
///     let loss = Grpo::default().loss(&batch, &policy, &old, None, &advantages)?;
///     Ok::<f32, mlxgk_training::Error>(loss.item_exact::<f32>())
/// };
/// // Towards the better answer the loss falls, but beyond the clip no further.
/// assert!(loss([-0.9, -1.1])? < loss([-1.0, -1.0])?);
/// assert_eq!(loss([-0.2, -1.8])?, loss([-0.1, -1.9])?);
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grpo {
    /// The ratio π / π_old is clipped at `1 - clip_low`.
    pub clip_low: f32,
    /// And at `1 + clip_high`.
    pub clip_high: f32,
    /// The weight of k3, the divergence from the reference.
    pub beta: f32,
    /// How tokens are averaged.
    pub reduction: Reduction,
}

impl Default for Grpo {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2, beta: 0.0, reduction: Reduction::Answers }
    }
}

impl Grpo {
    /// `mean(-min(ρ A, clip(ρ) A) + β · k3(π, ref))`, a scalar, with `ρ = exp(log π - log π_old)`.
    ///
    /// `policy`, `old` and `reference` are the log-probabilities of the batch's predicted tokens in
    /// its [order](Batch::row_of), `[predicted]`; `advantages` has one value per row of the batch.
    /// `reference` is not looked at where β is 0.
    ///
    /// # Errors
    /// When there is not one advantage per row, nothing is predicted, or the shapes do not fit.
    pub fn loss(
        &self,
        batch: &Batch,
        policy: &Array,
        old: &Array,
        reference: Option<&Array>,
        advantages: &[f32],
    ) -> Result<Array> {
        let (rows, count) = (batch.rows(), batch.supervised());
        if advantages.len() != rows || count == 0 {
            let what = format!(
                "{} advantages for {rows} answers with {count} predicted tokens",
                advantages.len()
            );
            return Err(Error::data(what));
        }
        let of_tokens: Vec<f32> = batch.row_of().map(|row| advantages[row]).collect();
        let advantages = Array::from_slice(&of_tokens, &[count as i32]);
        let losses = self.tokens(policy, old, reference, &advantages)?;
        Ok(match self.reduction {
            Reduction::Answers => batch.row_means().matmul(losses)?.mean(None)?,
            Reduction::Tokens => losses.mean(None)?,
            Reduction::Constant(longest) => {
                losses.sum(None)?.divide(number((rows * longest) as f32))?
            }
        })
    }

    fn tokens(
        &self,
        policy: &Array,
        old: &Array,
        reference: Option<&Array>,
        advantages: &Array,
    ) -> MlxResult<Array> {
        let ratio = exp(policy.subtract(old)?)?;
        let (low, high) = (number(1.0 - self.clip_low), number(1.0 + self.clip_high));
        let clipped = minimum(maximum(&ratio, low)?, high)?;
        let gain = minimum(ratio.multiply(advantages)?, clipped.multiply(advantages)?)?;
        match reference {
            Some(reference) if self.beta != 0.0 => {
                k3(policy, reference)?.multiply(number(self.beta))?.subtract(gain)
            }
            _ => gain.negative(),
        }
    }
}

/// Rewards as advantages: `(r - mean) / (std + 1e-4)` within groups of `group` answers to one prompt, with
/// the sample's standard deviation, as in TRL.
///
/// # Errors
/// When the rewards are not whole groups of at least two.
pub fn group_advantages(rewards: &[f32], group: usize) -> Result<Vec<f32>> {
    if group < 2 || !rewards.len().is_multiple_of(group) {
        let count = rewards.len();
        return Err(Error::data(format!("{count} rewards are not groups of {group} answers")));
    }
    let of_group = |rewards: &[f32]| {
        let count = rewards.len() as f64;
        let mean = rewards.iter().map(|&it| f64::from(it)).sum::<f64>() / count;
        let squares: f64 = rewards.iter().map(|&it| (f64::from(it) - mean).powi(2)).sum();
        let deviation = (squares / (count - 1.0)).sqrt() + 1e-4;
        rewards.iter().map(|&it| ((f64::from(it) - mean) / deviation) as f32).collect::<Vec<_>>()
    };
    Ok(rewards.chunks(group).flat_map(of_group).collect())
}
