//! Logits processors: what may be said next, given what was said.

mod context;
mod error;
mod processor;

pub use self::context::Context;
pub use self::error::{Error, ErrorKind, Result};
pub use self::processor::{LogitsProcessor, ProcessorList};
