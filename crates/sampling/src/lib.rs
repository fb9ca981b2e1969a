//! The next token, as Hugging Face's `generate()` chooses it, from scores that any model made.
//!
//! [`NextToken`] is the whole of it for one text: a resolved
//! [`GenerationConfig`](mlxgk_generation_config::GenerationConfig) in, a token for each row of scores
//! out. Its parts serve loops of any kind: [`Rules`] are what the rows of a request share, made from
//! the same config; a [`Chooser`] takes a token of processed scores; [`StopConditions`] say when a row
//! ends.
//!
//! Two features, both on by default: `tokenizer` for what is about text (stop strings, DRY's
//! breakers), and `grammars` for JSON schemas, regular expressions and Lark grammars.

mod chooser;
mod next_token;
mod rules;
mod stop;
mod text;

pub use mlxgk_logits_processors::{Error, ErrorKind, Result};
pub use mlxgk_samplers::{Seed, Streams};

pub use self::chooser::{Chooser, Sampling};
pub use self::next_token::{NextToken, Step};
pub use self::rules::Rules;
pub use self::stop::{FinishReason, Limits, MaxTime, StopConditions, StoppingCriterion};
#[cfg(feature = "grammars")]
pub use self::text::CompiledGrammar;
pub use self::text::Text;

#[cfg(all(doctest, feature = "grammars"))]
#[doc = include_str!("../README.md")]
struct Readme;
