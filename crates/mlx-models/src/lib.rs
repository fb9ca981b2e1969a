//! Decoder graphs for MLX.
//!
//! One loop, [`Decoder`], runs every family: embed, blocks, norm, head. It owns the weights, takes the
//! caller's [`KvCache`](mlxgk_kv_cache::KvCache), and calls a [`ResidualHook`] between any two
//! additions to the residual stream. Log-probabilities agree with transformers in fp32 to 1e-4.
//!
//! ```no_run
//! use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
//!
//! # fn main() -> Result<(), mlxgk_mlx_models::Error> {
//! let model = Decoder::load("models/qwen3".as_ref(), ComputeDtype::Auto)?;
//! let mut cache = model.new_cache(1);
//! let prompt = model.forward(&[&[5, 17, 300]], &mut cache, &mut NoHook)?; // [1, 3, vocabulary]
//! let next = model.forward(&[&[42]], &mut cache, &mut NoHook)?; // [1, 1, vocabulary]
//! # let _ = (prompt, next);
//! # Ok(())
//! # }
//! ```

mod activation;
mod attention;
mod backend;
mod block;
mod checkpoint;
mod components;
mod config;
mod decoder;
mod error;
mod families;
mod hooks;
mod linear;
mod moe;
mod norm;
mod recording;
mod rope;
mod weights;

use mlxgk_native as native;

pub use self::components::{Components, detect_components};
pub use self::decoder::{ComputeDtype, Decoder};
pub use self::error::{Error, ErrorKind, Result};
pub use self::families::model_types;
pub use self::hooks::{Capture, HookPoint, NoHook, ResidualHook};
pub use self::recording::Recording;
pub use self::weights::Footprint;
