//! Text to token ids and back, for models that come as Hugging Face folders.
//!
//! Three things stand between a conversation and a model, and all three are data that came with the
//! model: a **tokenizer** ([`Tokenizer`], over the `tokenizers` library's `tokenizer.json`), a **chat
//! template** ([`ChatTemplate`], a Jinja program), and the **ids** that begin, end and pad a sequence
//! ([`SpecialIds`]). On the way back a [`StreamDecoder`] makes text of ids one at a time. Each does
//! what transformers does with the same files; where it cannot, it says so in its documentation.
//!
//! Two features, both on by default: `tokenizer` (all about token ids) and `chat` (the templates, which
//! need no tokenizer).
//!
//! The crate knows no model and no MLX. What it needs are the [`Files`] of a folder, or the same
//! bytes from anywhere else.
//!
//! ```no_run
//! use mlxgk_tokenizer_bridge::{ChatTemplate, Files, Message, RenderOptions, SpecialIds, Tokenizer};
//!
//! let files = Files::from_folder("models/Qwen3-0.6B")?;
//! let tokenizer = Tokenizer::from_files(&files)?;
//! let template = ChatTemplate::from_files(&files)?;
//! let special = SpecialIds::from_files(&files, Some(&tokenizer))?;
//!
//! let options = RenderOptions::default().add_generation_prompt(true);
//! let prompt = template.render(&[Message::new("user", "Where is the port?")], &options)?;
//! let ids = tokenizer.encode(&prompt, false)?;
//! # let answer = [0u32];
//!
//! let mut stream = tokenizer.stream(true);
//! let mut text = String::new();
//! for id in answer.into_iter().take_while(|id| !special.eos.contains(id)) {
//!     text.push_str(stream.push(id)?);
//! }
//! text.push_str(stream.flush()?);
//! # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
//! ```

#[cfg(feature = "chat")]
mod calls;
#[cfg(feature = "chat")]
mod chat;
#[cfg(feature = "tokenizer")]
mod check;
#[cfg(feature = "tokenizer")]
mod classes;
mod config;
#[cfg(feature = "tokenizer")]
mod decode;
mod error;
mod files;
#[cfg(any(feature = "chat", feature = "tokenizer"))]
mod panics;
#[cfg(feature = "tokenizer")]
mod special;
#[cfg(feature = "tokenizer")]
mod stop_strings;
mod stop_trim;
#[cfg(feature = "tokenizer")]
mod texts;
#[cfg(feature = "tokenizer")]
mod tokenizer;

#[cfg(feature = "chat")]
pub use self::calls::{CallFormat, CallGrammar, CallReader, ToolCall, Written};
#[cfg(feature = "chat")]
pub use self::chat::{ChatTemplate, Message, RenderOptions};
pub use self::config::SpecialTokens;
#[cfg(feature = "tokenizer")]
pub use self::decode::StreamDecoder;
pub use self::error::{Error, ErrorKind, Result};
pub use self::files::Files;
#[cfg(feature = "tokenizer")]
pub use self::special::{IdSource, SpecialIds};
#[cfg(feature = "tokenizer")]
pub use self::stop_strings::StopStrings;
pub use self::stop_trim::StopTrim;
#[cfg(feature = "tokenizer")]
pub use self::texts::TokenTexts;
#[cfg(feature = "tokenizer")]
pub use self::tokenizer::Tokenizer;
