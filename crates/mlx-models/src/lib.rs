//! Decoder graphs for MLX.
//!
//! One loop, [`Decoder`], runs every family: embed, blocks, norm, head. It owns the weights, takes the
//! caller's [`KvCache`](mlxgk_kv_cache::KvCache), and calls a [`ResidualHook`] between any two
//! additions to the residual stream. Log-probabilities agree with transformers in fp32 to 1e-4.
//!
//! ```
//! use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
//! let model = Decoder::load(folder, ComputeDtype::Float32)?;
//! let mut cache = model.new_cache(1);
//! let prompt = model.forward(&[&[5, 17, 30]], &mut cache, &mut NoHook)?;
//! let next = model.forward(&[&[42]], &mut cache, &mut NoHook)?;
//! let vocabulary = model.vocab_size() as i32;
//! assert_eq!((prompt.shape(), next.shape()), (&[1, 3, vocabulary][..], &[1, 1, vocabulary][..]));
//! # Ok::<(), mlxgk_mlx_models::Error>(())
//! ```

mod activation;
mod adapter_dropout;
mod attention;
mod attentions;
mod backend;
mod block;
mod checkpoint;
mod concat;
mod config;
mod convolution;
mod custom;
mod decoder;
mod device;
mod embedding;
mod error;
mod experts;
mod families;
mod feed;
mod fingerprint;
mod foreign;
mod gated_delta;
mod growth;
mod hooks;
mod input;
mod kimi_delta;
mod latent;
mod linear;
mod load;
mod logprobs;
mod mamba2;
mod mlp;
mod moe;
mod mtp;
mod norm;
mod parameters;
mod pass;
mod per_layer;
mod product;
mod quantization;
mod recording;
mod recurrence;
mod rope;
mod routed_experts;
mod routing;
mod row_adapters;
mod row_hooks;
mod self_attention;
mod short_convolution;
mod streams;
mod together;
mod unread;
mod weight;
mod weights;

use mlxgk_native as native;

pub use self::adapter_dropout::AdapterDropout;
pub use self::attentions::AttentionRecorder;
pub use self::checkpoint::Skipped;
pub use self::custom::CustomBlock;
pub use self::decoder::{Components, ComputeDtype, Decoder, detect_components};
pub use self::device::use_device;
pub use self::error::{Error, ErrorKind, Result};
pub use self::families::{Supported, model_types, supported};
pub use self::hooks::{Capture, HookPoint, NoHook, ResidualHook};
pub use self::linear::{Adapter, Linear};
pub use self::logprobs::token_logprobs;
pub use self::mtp::MtpHeads;
pub use self::parameters::{Footprint, Parameter, ParameterKind};
pub use self::pass::BlockPass;
pub use self::product::Product;
pub use self::recording::Recording;
pub use self::row_adapters::AdapterChoice;
pub use self::row_hooks::{Addition, RowHooks, SharedHook};
