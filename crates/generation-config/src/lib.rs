#![doc = include_str!("../README.md")]

mod cache;
mod config;
mod error;
mod json;
mod merge;
mod mode;
mod pipeline;
mod request_fields;
mod resolve;
mod support;
mod validate;
mod value;
mod warning;
mod watermarking;

pub use mlxgk_logits_processors::{
    SeedingScheme, SynthIdTextWatermarkingConfig, WatermarkingConfig,
};

pub use self::cache::{CacheBound, CacheChoice, CacheQuantization};
pub use self::config::GenerationConfig;
pub use self::error::{Error, ErrorKind, Result};
pub use self::json::read_json;
pub use self::merge::{Kwargs, Merged, Sources, default_generation_params};
pub use self::mode::GenerationMode;
pub use self::pipeline::Pipeline;
pub use self::request_fields::{Chat, RequestFields};
pub use self::resolve::{Lengths, Resolved, SpecialTokens};
pub use self::value::{DolaLayers, EarlyStopping, ForcedWord, OneOrMany, TokenId};
pub use self::warning::{Warning, WarningKind};
pub use self::watermarking::Watermarking;
