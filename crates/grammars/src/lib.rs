//! JSON schemas, regular expressions and Lark grammars as a logits processor.
//!
//! The grammar work is `llguidance`'s; this crate makes it a [`LogitsProcessor`] that keeps that
//! trait's promise: its result is a function of the context alone. It remembers parser states, but
//! looks them up by the tokens they have read, so another beam, a rollback or a repeated call finds
//! or rebuilds the state that belongs to it.
//!
//! ```
//! use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
//! use mlxgk_logits_processors::{Context, LogitsProcessor};
//!
//! # fn main() -> Result<(), mlxgk_logits_processors::Error> {
//! // One token per byte, and an end token.
//! let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
//! tokens.push(b"\xff<|end|>".to_vec());
//! let vocabulary = Vocabulary::new(&tokens, &[256])?;
//!
//! let grammar = Grammar::regex("(cat|dog)[0-9]{2}")?;
//! let processor = GrammarProcessor::new(&vocabulary, &grammar)?;
//! let mut scores = vec![0.0; tokens.len()];
//! processor.process(&Context::new(&[u32::from(b'>')], 1), &mut scores)?;
//! let allowed: Vec<usize> = (0..257).filter(|&id| scores[id] == 0.0).collect();
//! assert_eq!(allowed, [usize::from(b'c'), usize::from(b'd')]);
//! # Ok(())
//! # }
//! ```
//!
//! [`LogitsProcessor`]: mlxgk_logits_processors::LogitsProcessor

mod engine;
mod grammar;
mod lark;
mod probe;
mod processor;
mod schema;
mod vocabulary;

pub use self::grammar::Grammar;
pub use self::processor::GrammarProcessor;
pub use self::vocabulary::Vocabulary;
