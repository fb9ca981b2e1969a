//! Processors that look at numbers only.

mod guidance;
mod inf_nan;
mod normalization;

pub use self::guidance::guide;
pub use self::inf_nan::InfNanRemove;
pub use self::normalization::{LogitNormalization, log_softmax};
