//! KV caches you can hold: the memory of a decoder, owned by the caller and never by the model.
//!
//! A [`KvCache`] belongs to one request or one left-padded batch. It keeps what each decoder layer
//! needs of the past, knows which tokens it holds, and answers the two questions that only it can
//! answer, because only it knows what it dropped: where the next tokens stand ([`Step::positions`])
//! and what they may look at ([`Step::mask`]).
//!
//! ```
//! use mlx_rs::{Array, Dtype, ops::zeros_dtype};
//! use mlxgk_kv_cache::{KvCache, LayerSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two layers: one that keeps everything, one that keeps a window of 128 tokens.
//! let mut cache = KvCache::new(&[LayerSpec::Full, LayerSpec::Sliding { window: 128 }], 1);
//!
//! // A forward pass over three tokens: [batch, kv heads, tokens, head dimension] per layer.
//! let new = zeros_dtype(&[1, 2, 3, 16], Dtype::Float32)?;
//! for layer in 0..2 {
//!     let (keys, _values) = cache.update(layer, &new, &new)?;
//!     assert_eq!(keys.shape(), [1, 2, 3, 16]);
//! }
//! cache.advance(3);
//! cache.record(&[&[5, 17, 300]])?;
//!
//! // A fork shares the arrays until one of the two is written to.
//! let mut draft = cache.fork();
//! draft.trim(1)?;
//! assert_eq!((cache.len(), draft.len()), (3, 2));
//! assert_eq!(draft.tokens(0), [5, 17]);
//! # Ok(())
//! # }
//! ```
//!
//! # How a failed forward pass leaves the cache
//!
//! Layers are written at column [`KvCache::len`], and only [`KvCache::advance`] moves it. A pass that
//! fails half-way therefore changes nothing that a later pass reads.

mod buffer;
mod cache;
mod error;
mod join;
mod row;
mod step;

pub use self::cache::{KvCache, LayerSpec};
pub use self::error::{Error, ErrorKind, Result};
pub use self::row::RowId;
pub use self::step::{Mask, Positions, Step};
