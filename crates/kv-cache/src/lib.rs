//! KV caches you can hold: the memory of a decoder, owned by the caller and never by the model.
//!
//! A [`KvCache`] belongs to one request or one left-padded batch. It keeps what each decoder layer
//! needs of the past, knows which tokens it holds, and answers the two questions that only it can
//! answer, because only it knows what it dropped: where the next tokens stand ([`Step::positions`])
//! and what they may look at ([`Pass::append`]).
//!
//! ```
//! use mlx_rs::{Array, Dtype, ops::zeros_dtype};
//! use mlxgk_kv_cache::{KvCache, LayerSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two layers: one that sees everything, one that sees a window of 128 tokens.
//! let mut cache = KvCache::new(&[LayerSpec::Full, LayerSpec::Sliding { window: 128 }], 1);
//!
//! // A forward pass over three tokens: [batch, kv heads, tokens, head dimension] per layer.
//! let new = zeros_dtype(&[1, 2, 3, 16], Dtype::Float32)?;
//! let mut pass = cache.begin_tokens(&[&[5, 17, 300]], &[])?;
//! for layer in 0..2 {
//!     let seen = pass.append(layer, &new, &new)?;
//!     assert_eq!(seen.keys.dense()?.shape(), [1, 2, 3, 16]);
//! }
//! pass.commit()?;
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
//! A [`Pass`] writes after the columns that count, holds new states apart, and
//! [`commit`](Pass::commit) alone makes them the cache's. A pass that fails half-way, or is dropped,
//! has changed nothing.

mod buffer;
mod cache;
mod columns;
mod concat;
mod error;
mod file;
mod join;
mod mark;
mod pass;
mod prefix_folder;
mod prefixes;
mod row;
mod saved;
mod spec;
mod step;

pub use self::cache::KvCache;
pub use self::columns::{Columns, Packed, Seen};
pub use self::error::{Error, ErrorKind, Result};
pub use self::file::{CacheFile, CacheOrigin};
pub use self::mark::Mark;
pub use self::pass::Pass;
pub use self::prefixes::{Effect, PrefixCounters, PrefixScope, PrefixStore};
pub use self::row::{Column, RowId};
pub use self::saved::{CacheDescription, CacheState};
pub use self::spec::{CacheOptions, LayerSpec, Quantization};
pub use self::step::{Mask, Positions, Step};
