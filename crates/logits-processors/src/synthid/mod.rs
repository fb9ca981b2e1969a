//! SynthID, the tournament watermark, and its detectors.

mod bayesian;
mod detector;
mod processor;
mod tournament;

pub use self::bayesian::BayesianDetector;
pub use self::detector::{GValues, SynthIdTextDetector};
pub use self::processor::SynthIdText;
pub use self::tournament::SynthIdTextWatermarkingConfig;
