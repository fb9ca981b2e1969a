#![doc = include_str!("../README.md")]

mod log;
mod plan;
mod rows;
mod run;
mod tokenizer;
mod weights;

pub use self::plan::{Documents, Plan};
pub use self::run::run;
pub use self::tokenizer::train_tokenizer;

/// Whatever went wrong: a person reads it, no program decides by it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A result with that error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
