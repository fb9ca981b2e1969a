#![doc = include_str!("../README.md")]

mod batches;
mod generation;
mod grammar;
mod memory;
pub mod models;
pub mod sampling;
pub mod shapes;
mod task;
mod training;

pub use self::batches::{LONG, ROWS, pauses, speeds};
pub use self::generation::{Timed, time};
pub use self::grammar::{Masks, vocabulary};
pub use self::memory::peak_bytes;
pub use self::sampling::Draws;
pub use self::task::{Architecture, Generator, Precision, Task};

/// Whatever went wrong: a person reads it, no program decides by it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
