//! Logits processors: what may be said next, given what was said.

mod context;
mod error;
mod list;
mod processor;
mod stage;
mod torch_random;

pub use self::context::Context;
pub use self::error::{Error, ErrorKind, Result};
pub use self::list::ProcessorList;
pub use self::processor::{LogitsProcessor, Row};
pub use self::stage::Stage;
pub use self::torch_random::TorchRng;
