//! Hugging Face `generate()` for Apple's MLX: the same control surface, the same tokens.
//!
//! ```
//! use mlx_genkit::{ComputeDtype, GenerationConfig, Model, Request, Seed, generate};
//!
//! # fn main() -> Result<(), mlx_genkit::Error> {
//! let model = Model::bundled(ComputeDtype::Auto)?;
//! let config = GenerationConfig { max_new_tokens: Some(12), ..Default::default() };
//!
//! let greedy = generate(&model, Request::new("Once upon a time").config(config.clone()))?;
//! println!("{}", greedy.sequences[0].text);
//!
//! // Sampled: the tokens that torch draws after `torch.manual_seed(7)`.
//! let sampled = GenerationConfig { do_sample: Some(true), top_p: Some(0.9), ..config };
//! let request = Request::new("Once upon a time").config(sampled).seed(Seed::Torch(7));
//! println!("{}", generate(&model, request)?.sequences[0].text);
//! # Ok(())
//! # }
//! ```
//!
//! The crates underneath can be used alone; they are re-exported as modules of their own names.

#[cfg(feature = "bundled")]
mod bundled;
mod error;
mod generate;
mod model;
mod prompt;
mod request;

pub use mlxgk_decoding_strategies as decoding_strategies;
pub use mlxgk_generation_config as generation_config;
pub use mlxgk_kv_cache as kv_cache;
pub use mlxgk_logits_processors as logits_processors;
pub use mlxgk_mlx_models as mlx_models;
pub use mlxgk_samplers as samplers;
pub use mlxgk_tokenizer_bridge as tokenizer_bridge;

pub use mlxgk_decoding_strategies::FinishReason;
pub use mlxgk_generation_config::GenerationConfig;
pub use mlxgk_mlx_models::{ComputeDtype, HookPoint, NoHook, ResidualHook};
pub use mlxgk_tokenizer_bridge::Message;

pub use self::error::{Error, ErrorKind, Result};
pub use self::generate::{
    Generation, Piece, Scored, Sequence, TokenStream, generate, score, stream,
};
pub use self::model::{Model, load};
pub use self::prompt::Prompt;
pub use self::request::{Request, Seed};
