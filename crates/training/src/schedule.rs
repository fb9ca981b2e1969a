//! How the learning rate changes from step to step, as in transformers' `get_scheduler`.

use std::f64::consts::PI;

use crate::{Error, Result};

/// The shape after the warm-up.
///
/// ```
/// use mlxgk_training::{Decay, Schedule};
///
/// let factors = |decay| {
///     let schedule = Schedule { warmup: 0, decay };
///     [0, 2, 4, 6].map(|step| (schedule.factor(step, 8) * 100.0).round() / 100.0)
/// };
/// assert_eq!(factors(Decay::Constant), [1.0, 1.0, 1.0, 1.0]);
/// assert_eq!(factors(Decay::Cosine), [1.0, 0.85, 0.5, 0.15]);
/// assert_eq!(factors(Decay::Wsd { steps: 4 }), [1.0, 1.0, 1.0, 0.5]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Decay {
    /// Stays as it is (`constant_with_warmup`).
    #[default]
    Constant,
    /// Falls to 0 in a straight line (`linear`).
    Linear,
    /// Falls to 0 along half a cosine (`cosine`).
    Cosine,
    /// Stays, and falls along half a cosine in the last `steps` steps (warm-up, stable, decay).
    Wsd {
        /// The last steps.
        steps: u64,
    },
}

/// A factor per step. The first step after `warmup` 0 has factor 1; with a warm-up the first step of
/// all has factor 0, as in transformers.
///
/// See the example of [`factor`](Self::factor).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Schedule {
    /// Steps in which the factor grows from 0 to 1.
    pub warmup: u64,
    /// What comes then.
    pub decay: Decay,
}

impl Schedule {
    /// What the learning rate of step `step` (from 0) is multiplied by, in a run of `total` steps.
    ///
    /// ```
    /// use mlxgk_training::{Decay, Schedule};
    ///
    /// let schedule = Schedule { warmup: 2, decay: Decay::Linear };
    /// let factors: Vec<f64> = (0..6).map(|step| schedule.factor(step, 6)).collect();
    /// assert_eq!(factors, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    /// ```
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup.max(1) as f64;
        }
        let part = |from: u64, steps: u64| (step - from) as f64 / steps.max(1) as f64;
        let cosine = |part: f64| (0.5 * (1.0 + (PI * part).cos())).max(0.0);
        let rest = total.saturating_sub(self.warmup);
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => total.saturating_sub(step) as f64 / rest.max(1) as f64,
            Decay::Cosine => cosine(part(self.warmup, rest)),
            Decay::Wsd { steps } => {
                let from = total.saturating_sub(steps);
                if step < from {
                    1.0
                } else if step < total {
                    cosine(part(from, steps))
                } else {
                    0.0
                }
            }
        }
    }

    /// Refuses a warm-up or decay longer than the run.
    pub(crate) fn check(&self, total: u64) -> Result<()> {
        let decay = match self.decay {
            Decay::Wsd { steps } => steps,
            _ => 0,
        };
        if self.warmup + decay <= total {
            return Ok(());
        }
        let warmup = self.warmup;
        Err(Error::config(format!(
            "a warm-up of {warmup} steps and a decay of {decay} do not fit into {total} steps"
        )))
    }
}
