//! The next token, as Hugging Face's `generate()` chooses it.

mod chooser;

pub use self::chooser::{Chooser, Sampling};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
