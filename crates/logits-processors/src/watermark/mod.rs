//! The green-list watermark and its detector.

mod detector;
mod greenlist;
mod processor;

pub use self::detector::{WatermarkDetection, WatermarkDetector};
pub use self::greenlist::{SeedingScheme, WatermarkingConfig};
pub use self::processor::Watermark;
