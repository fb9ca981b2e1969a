#![doc = include_str!("../README.md")]

mod abilities;
mod assistant;
mod attentions;
mod batch;
#[cfg(feature = "bundled")]
mod bundled;
mod cache_files;
mod caches;
mod error;
mod generate;
mod guardrails;
mod healing;
mod hidden;
mod memory;
mod model;
mod output;
mod pairs;
mod passes;
mod plan;
mod planning;
mod prompt;
mod request;
mod row_adapters;
mod score;
mod start;
mod stream;
mod text;
mod translation;
mod watchers;

pub use mlx_rs;
pub use mlxgk_decoding_strategies as decoding_strategies;
pub use mlxgk_generation_config as generation_config;
#[cfg(feature = "grammars")]
pub use mlxgk_grammars as grammars;
pub use mlxgk_kv_cache as kv_cache;
pub use mlxgk_logits_processors as logits_processors;
pub use mlxgk_mlx_models as mlx_models;
pub use mlxgk_samplers as samplers;
pub use mlxgk_sampling as sampling;
pub use mlxgk_steering as steering;
pub use mlxgk_tokenizer_bridge as tokenizer_bridge;
pub use mlxgk_training as training;

pub use mlxgk_decoding_strategies::{Acceptance, FinishReason, StoppingCriterion};
pub use mlxgk_generation_config::GenerationConfig;
pub use mlxgk_mlx_models::{
    AdapterChoice, Capture, ComputeDtype, HookPoint, NoHook, Recording, ResidualHook,
};
pub use mlxgk_samplers::Seed;
pub use mlxgk_tokenizer_bridge::Message;

pub use self::abilities::{Abilities, Ability};
pub use self::assistant::Assistant;
pub use self::attentions::{AttentionWeights, Attentions};
pub use self::batch::{Batch, BatchEvent, BatchOutcome};
pub use self::error::{Error, ErrorKind, Result};
pub use self::guardrails::Guardrails;
pub use self::hidden::HiddenStates;
pub use self::model::Model;
pub use self::output::{Generation, Piece, Sequence};
pub use self::pairs::{Contrast, ContrastPair};
pub use self::plan::Plan;
pub use self::prompt::Prompt;
pub use self::request::{AssistedRequest, Request};
pub use self::score::Scored;
pub use self::stream::TokenStream;

/// The Rust of the book, which the doc tests compile and run.
#[cfg(doctest)]
mod book {
    #[doc = include_str!("../../../README.md")]
    struct FrontPage;
    #[doc = include_str!("../../../docs/install.md")]
    struct Install;
    #[doc = include_str!("../../../docs/tutorials/json.md")]
    struct Json;
    #[doc = include_str!("../../../docs/steering.md")]
    struct Steering;
    #[doc = include_str!("../../../docs/caches.md")]
    struct Caches;
    #[doc = include_str!("../../../docs/from-python.md")]
    struct FromPython;
    #[doc = include_str!("../../../docs/without-mlx.md")]
    struct WithoutMlx;
}
