//! Loss scaling: gradients in half precision that are too small to be distinguished from 0 are multiplied on the
//! way. bf16 has fp32's range and needs none.

use crate::{Error, Result};

/// torch's `GradScaler`: the scale falls by half whenever a gradient overflows, and doubles after many
/// steps without.
///
/// ```
/// use mlxgk_training::LossScaler;
///
/// let mut scaler = LossScaler::dynamic().starting_at(1024.0)?.growing_after(2);
/// scaler.update(true);
/// assert_eq!(scaler.scale(), 512.0);
/// scaler.update(false);
/// scaler.update(false);
/// assert_eq!(scaler.scale(), 1024.0);
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScaler {
    scale: f32,
    growth_factor: f32,
    backoff_factor: f32,
    growth_interval: u64,
    /// Steps since the last overflow or growth.
    clean: u64,
    dynamic: bool,
}

impl Default for LossScaler {
    /// No scaling; what is not finite is then an error.
    fn default() -> Self {
        Self { scale: 1.0, dynamic: false, ..Self::dynamic() }
    }
}

impl LossScaler {
    /// One scale for the whole run; what is not finite is an error.
    ///
    /// # Errors
    /// When it is not positive.
    pub fn fixed(scale: f32) -> Result<Self> {
        Self { dynamic: false, ..Self::dynamic() }.starting_at(scale)
    }

    /// torch's defaults: from 2^16, halved by an overflow, doubled after 2,000 steps without.
    pub fn dynamic() -> Self {
        Self {
            scale: 65_536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2_000,
            clean: 0,
            dynamic: true,
        }
    }

    /// The same, beginning with another scale.
    ///
    /// # Errors
    /// When it is not positive.
    pub fn starting_at(self, scale: f32) -> Result<Self> {
        if scale.is_finite() && scale > 0.0 {
            return Ok(Self { scale, ..self });
        }
        Err(Error::config(format!("the loss scale is {scale}, must be above 0")))
    }

    /// The same, but doubling after this many steps without an overflow.
    #[must_use]
    pub fn growing_after(self, growth_interval: u64) -> Self {
        Self { growth_interval: growth_interval.max(1), ..self }
    }

    /// What the loss is multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Whether a step that overflows is skipped.
    pub fn is_dynamic(&self) -> bool {
        self.dynamic
    }

    /// After a step: whether one of its gradients was not finite.
    pub fn update(&mut self, overflowed: bool) {
        if !self.dynamic {
            return;
        }
        if overflowed {
            self.scale *= self.backoff_factor;
            self.clean = 0;
            return;
        }
        self.clean += 1;
        if self.clean == self.growth_interval {
            self.scale *= self.growth_factor;
            self.clean = 0;
        }
    }

    pub(crate) fn state(&self) -> (f32, u64) {
        (self.scale, self.clean)
    }

    pub(crate) fn set_state(&mut self, (scale, clean): (f32, u64)) {
        (self.scale, self.clean) = (scale, clean);
    }
}
