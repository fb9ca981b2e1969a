#![doc = include_str!("../README.md")]

mod config;
mod error;
mod json;
mod merge;
mod mode;
mod resolve;
mod support;
mod validate;
mod value;
mod warning;

pub use self::config::GenerationConfig;
pub use self::error::{Error, ErrorKind, Result};
pub use self::merge::{Kwargs, Merged, Sources, default_generation_params};
pub use self::mode::GenerationMode;
pub use self::resolve::{Lengths, Resolved, SpecialTokens};
pub use self::value::{
    EarlyStopping, OneOrMany, SynthIdTextWatermarkingConfig, TokenId, Watermarking,
    WatermarkingConfig,
};
pub use self::warning::{Warning, WarningKind};
