//! How far one next-token distribution is from another.

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::{exp, logaddexp, logsumexp_axis},
};

use super::{number, selective_log_softmax};

/// What is computed of two distributions p and q.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{KlEstimator, losses::kl_divergence};
///
/// // Logits of p = (0.75, 0.25) and q = (0.5, 0.5), and the label that was drawn.
/// let (p, q) = ([3f32.ln(), 0.0], [0.0_f32, 0.0]);
/// let [p, q] = [p, q].map(|it| Array::from_slice(&it, &[1, 2]));
/// let label = Array::from_slice(&[0_u32], &[1]);
/// let of = |it| kl_divergence(&p, &q, &label, it).map(|it| it.item_exact::<f32>());
/// assert!((of(KlEstimator::Full)? - 0.1308).abs() < 1e-4);
/// assert!((of(KlEstimator::K1)? - 1.5f32.ln()).abs() < 1e-6); // ln(0.75 / 0.5)
/// assert!((of(KlEstimator::K3)? - 0.0721).abs() < 1e-4);
/// # Ok::<(), mlx_rs::error::Exception>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KlEstimator {
    /// KL(p ‖ q) = Σ p (log p - log q) over the vocabulary.
    #[default]
    Full,
    /// KL(q ‖ p).
    Reverse,
    /// (KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2: Jensen-Shannon.
    JensenShannon,
    /// log p(y) - log q(y) of the label: unbiased where labels are drawn from p, may be negative.
    K1,
    /// k1² / 2.
    K2,
    /// e^(log q - log p) - (log q - log p) - 1 of the label (Schulman, 2020): unbiased, never negative.
    K3,
}

/// The divergence of each row: fp32 `[n]` for two `[n, vocabulary]` of logits. `targets`, u32 `[n]`, are
/// the labels that the sampled estimators look at.
///
/// # Errors
/// When the shapes do not fit.
pub fn kl_divergence(
    p: &Array,
    q: &Array,
    targets: &Array,
    estimator: KlEstimator,
) -> MlxResult<Array> {
    if matches!(estimator, KlEstimator::K1 | KlEstimator::K2 | KlEstimator::K3) {
        let (p, q) = (selective_log_softmax(p, targets)?, selective_log_softmax(q, targets)?);
        let k1 = p.subtract(&q)?;
        return match estimator {
            KlEstimator::K1 => Ok(k1),
            KlEstimator::K2 => k1.square()?.multiply(number(0.5)),
            _ => k3(&p, &q),
        };
    }
    let log_softmax = |logits: &Array| {
        let logits = logits.as_dtype(Dtype::Float32)?;
        logits.subtract(logsumexp_axis(&logits, -1, true)?)
    };
    let (p, q) = (log_softmax(p)?, log_softmax(q)?);
    match estimator {
        KlEstimator::Reverse => divergence(&q, &p),
        KlEstimator::JensenShannon => {
            let m = logaddexp(&p, &q)?.subtract(number(std::f32::consts::LN_2))?;
            divergence(&p, &m)?.add(divergence(&q, &m)?)?.multiply(number(0.5))
        }
        _ => divergence(&p, &q),
    }
}

/// k3 of two log-probabilities.
pub(super) fn k3(p: &Array, q: &Array) -> MlxResult<Array> {
    let ratio = q.subtract(p)?;
    exp(&ratio)?.subtract(&ratio)?.subtract(number(1.0))
}

/// Σ p (log p - log q) of log-probabilities.
fn divergence(p: &Array, q: &Array) -> MlxResult<Array> {
    exp(p)?.multiply(p.subtract(q)?)?.sum_axis(-1, false)
}
