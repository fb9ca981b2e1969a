//! Log-softmax.

use mlxgk_torch::{ln, sum_of_exp};

use crate::{Context, Error, ErrorKind, LogitsProcessor, Result, Stage};

/// Turns scores into log-probabilities (`LogitNormalization`, `renormalize_logits`).
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitNormalization, LogitsProcessor};
///
/// let mut scores = [2.0, 2.0, f32::NEG_INFINITY];
/// LogitNormalization.process(&Context::new(&[], 0), &mut scores)?;
/// assert_eq!(scores, [0.5f32.ln(), 0.5f32.ln(), f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogitNormalization;

impl LogitsProcessor for LogitNormalization {
    fn name(&self) -> &'static str {
        "LogitNormalization"
    }

    fn stage(&self) -> Stage {
        Stage::Normalization
    }

    /// # Errors
    /// When every token is banned: there is no distribution (torch gives NaN).
    fn process(&self, _context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        log_softmax(scores)
    }
}

/// Subtracts from every score the logarithm of the sum of their exponentials.
///
/// # Errors
/// When every score is minus infinity.
pub fn log_softmax(scores: &mut [f32]) -> Result<()> {
    let LogSum { max, log_sum } = LogSum::of(scores)?;
    for score in scores {
        *score = *score - max - log_sum;
    }
    Ok(())
}

/// The logarithm of a sum of exponentials, in the two parts that torch subtracts one after the
/// other: together they would lose the low bits of `log_sum` beside a large `max`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSum {
    pub(crate) max: f32,
    pub(crate) log_sum: f32,
}

impl LogSum {
    pub(crate) fn of(scores: &[f32]) -> Result<Self> {
        let max = mlxgk_torch::max(scores);
        if max == f32::NEG_INFINITY && !scores.iter().any(|it| it.is_nan()) {
            return Err(Error::new(ErrorKind::NoTokenAllowed, "every token is banned"));
        }
        Ok(Self { max, log_sum: ln(sum_of_exp(scores, max)) })
    }
}
