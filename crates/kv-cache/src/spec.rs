//! What a layer may see of the past, and how the cache is to keep it: two things.

use crate::{Error, Result};

/// What one decoder layer may see of the past. A model states it per layer.
///
/// How columns are kept (dense or quantized) is an option of the cache: [`CacheOptions`].
///
/// ```
/// use mlxgk_kv_cache::{CacheOptions, KvCache, LayerSpec};
///
/// let layers = [LayerSpec::Full, LayerSpec::Sliding { window: 128 }, LayerSpec::State];
/// let cache = KvCache::new(&layers, 1);
/// assert_eq!(cache.windows().collect::<Vec<_>>(), [None, Some(128), None]);
/// // A bound of the cache holds for the layers that would see everything.
/// let bounded = KvCache::with_options(&layers, &[0], &CacheOptions::new().bounded(4, 512))?;
/// assert_eq!(bounded.windows().collect::<Vec<_>>(), [Some(512), Some(128), None]);
/// assert!(!LayerSpec::State.has_attention());
/// # Ok::<(), mlxgk_kv_cache::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LayerSpec {
    /// Every token. Latent attention is of this kind, too: keys and values may have unlike widths, so
    /// a block appends the latent as one and the rotary key as the other.
    Full,
    /// A query sees itself and the `window - 1` tokens before it.
    Sliding {
        /// Tokens visible to one query, itself included; at least 1.
        window: usize,
    },
    /// A row is cut into pieces of `size` tokens, and a query sees those of its own piece that are not
    /// behind it (Llama 4).
    Chunked {
        /// Tokens of a piece; at least 1.
        size: usize,
    },
    /// A query sees the row's first `sinks` tokens and the newest ones, `size` in all (StreamingLLM;
    /// mlx-lm's `RotatingKVCache` with `keep`). Positions are those of the whole text.
    Bounded {
        /// Tokens at the beginning of a row that stay visible.
        sinks: usize,
        /// Tokens visible to one query, itself and the sinks included; above `sinks`.
        size: usize,
    },
    /// What the layer `owner` sees, which comes earlier and has columns: the layer has none of its
    /// own (Gemma 3n and 4).
    Shared {
        /// The layer whose columns are read.
        owner: usize,
    },
    /// A state that every pass replaces, such as a recurrence's or a convolution's, and no columns.
    State,
    /// Nothing: the layer sees the tokens of a pass one by one (a feed-forward layer alone, as in
    /// Nemotron-H).
    Nothing,
}

impl LayerSpec {
    /// How many of the newest tokens a query sees, itself included; `None` for all of them.
    pub(crate) fn newest(self) -> Option<usize> {
        match self {
            Self::Sliding { window } => Some(window),
            // At most.
            Self::Chunked { size } => Some(size),
            Self::Bounded { sinks, size } => Some(size - sinks),
            _ => None,
        }
    }

    /// The first column among the newest that a query at column `start` may see.
    pub(crate) fn first_visible(self, start: usize) -> usize {
        self.newest().map_or(0, |newest| (start + 1).saturating_sub(newest))
    }

    /// How many of a row's first tokens stay visible for good.
    pub(crate) fn sinks(self) -> usize {
        if let Self::Bounded { sinks, .. } = self { sinks } else { 0 }
    }

    /// Whether the layer has columns of its own.
    pub(crate) fn has_columns(self) -> bool {
        !matches!(self, Self::Shared { .. } | Self::State | Self::Nothing)
    }

    /// Whether a cache keeps anything of its own for the layer.
    pub(crate) fn is_kept(self) -> bool {
        !matches!(self, Self::Shared { .. } | Self::Nothing)
    }

    /// Whether a query weighs tokens of the past, which [`State`](Self::State) and
    /// [`Nothing`](Self::Nothing) have no weights for.
    pub fn has_attention(self) -> bool {
        !matches!(self, Self::State | Self::Nothing)
    }

    /// Refuses a layer that could see nothing or read what is not there.
    pub(crate) fn check(self, index: usize, layers: &[Self]) -> Result<()> {
        let wrong = |what: String| Err(Error::argument(format!("layer {index} {what}")));
        match self {
            Self::Sliding { window: 0 } => wrong("has a window of 0 tokens".into()),
            Self::Chunked { size: 0 } => wrong("has pieces of 0 tokens".into()),
            Self::Bounded { sinks, size } if size <= sinks => {
                wrong(format!("has a size of {size} tokens, which {sinks} sinks fill"))
            }
            Self::Shared { owner } if owner >= index || !layers[owner].has_columns() => {
                wrong(format!("shares layer {owner}, which is not an earlier layer with columns"))
            }
            _ => Ok(()),
        }
    }
}

/// How a cache keeps what its layers may see.
///
/// ```
/// use mlxgk_kv_cache::{CacheOptions, KvCache, LayerSpec, Quantization};
///
/// let options = CacheOptions::new().quantized(Quantization::new(64, 8)?);
/// let cache = KvCache::with_options(&[LayerSpec::Full], &[0], &options)?;
/// assert_eq!(cache.options(), &options);
/// # Ok::<(), mlxgk_kv_cache::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct CacheOptions {
    /// Columns are quantized in this way.
    pub quantization: Option<Quantization>,
    /// Full layers are bounded to this number of sinks and of tokens in all: see
    /// [`LayerSpec::Bounded`].
    pub bound: Option<(usize, usize)>,
    /// The cache serves a single pass and keeps nothing of it, as in training: no column is copied.
    pub single_pass: bool,
    /// Only the model's first layers are kept, and a pass leaves the model behind them (HF
    /// `assistant_early_exit`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_exit: Option<usize>,
}

impl CacheOptions {
    /// Dense columns, everything kept.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps columns quantized.
    #[must_use]
    pub fn quantized(self, quantization: Quantization) -> Self {
        Self { quantization: Some(quantization), ..self }
    }

    /// Bounds full layers: a query sees its row's first `sinks` tokens and the newest, `size` in all.
    #[must_use]
    pub fn bounded(self, sinks: usize, size: usize) -> Self {
        Self { bound: Some((sinks, size)), ..self }
    }

    /// Keeps nothing beyond one pass.
    #[must_use]
    pub fn single_pass(self) -> Self {
        Self { single_pass: true, ..self }
    }

    /// Keeps the first `layers` layers alone, behind which a pass leaves the model.
    #[must_use]
    pub fn early_exit(self, layers: usize) -> Self {
        Self { early_exit: Some(layers), ..self }
    }

    /// What a layer of this kind sees under these options.
    pub(crate) fn sight(&self, spec: LayerSpec) -> LayerSpec {
        match (spec, self.bound) {
            (LayerSpec::Full, Some((sinks, size))) => LayerSpec::Bounded { sinks, size },
            _ => spec,
        }
    }
}

/// Columns in MLX's affine format: groups of numbers along the head dimension as integers of a few
/// bits, `scale · q + bias` (mlx-lm's `QuantizedKVCache`).
///
/// ```
/// use mlxgk_kv_cache::Quantization;
///
/// let packed = Quantization::new(64, 8)?.starting_at(1024);
/// assert_eq!((packed.group_size, packed.bits, packed.start), (64, 8, 1024));
/// assert!(Quantization::new(64, 7).is_err());
/// # Ok::<(), mlxgk_kv_cache::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Quantization {
    /// Numbers that share a scale; the head dimension must be a multiple of it.
    pub group_size: i32,
    /// Bits per number.
    pub bits: i32,
    /// Passes that begin before this column keep dense columns; the first one at or after it
    /// quantizes what is held, and from then on all is quantized (mlx-lm's `quantized_kv_start`). With
    /// 0 a row does not depend on how it was cut into passes.
    pub start: usize,
}

impl Quantization {
    /// Quantizes from the first column on.
    ///
    /// # Errors
    /// When MLX has no such format: the group must be 32, 64 or 128, the bits 2, 3, 4, 5, 6 or 8.
    pub fn new(group_size: i32, bits: i32) -> Result<Self> {
        if !matches!(group_size, 32 | 64 | 128) {
            let what = "the group size of a quantized cache";
            return Err(Error::argument(format!("{what} is {group_size}, not 32, 64 or 128")));
        }
        if !matches!(bits, 2..=6 | 8) {
            let what = "the bits of a quantized cache";
            return Err(Error::argument(format!("{what} are {bits}, not 2, 3, 4, 5, 6 or 8")));
        }
        Ok(Self { group_size, bits, start: 0 })
    }

    /// Keeps columns dense until `column` of them are held.
    #[must_use]
    pub fn starting_at(self, column: usize) -> Self {
        Self { start: column, ..self }
    }
}
