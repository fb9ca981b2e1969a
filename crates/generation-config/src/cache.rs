//! Which cache the fields ask for: HF's classes by name, and mlx-lm's properties by field.

use serde_json::Value;

use crate::{Error, ErrorKind, GenerationConfig, Result, Warning, WarningKind};

/// Tokens at the beginning of a row that stay visible under `max_kv_size` (mlx-lm's `keep`).
const DEFAULT_KEEP: usize = 4;

/// Bits of a cache that HF's `cache_implementation` asks to quantize without saying how.
const DEFAULT_BITS: usize = 4;

/// What the fields ask of a request's cache. The default keeps everything as it is.
///
/// ```
/// use mlxgk_generation_config::{CacheChoice, GenerationConfig};
///
/// let plain = GenerationConfig::default().cache_choice(100)?.0;
/// assert_eq!(plain, CacheChoice::default());
/// let name = Some("static".into());
/// let config = GenerationConfig { cache_implementation: name, ..Default::default() };
/// assert_eq!(config.cache_choice(100)?.0.capacity, Some(100));
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheChoice {
    /// `max_kv_size`, and how many of a row's first tokens are among them (`kv_keep`).
    pub bound: Option<CacheBound>,
    /// How keys and values are packed.
    pub quantization: Option<CacheQuantization>,
    /// Tokens that room is made for at once: HF's static caches.
    pub capacity: Option<usize>,
}

/// See [`CacheChoice::bound`].
///
/// ```
/// use mlxgk_generation_config::{CacheBound, GenerationConfig};
///
/// let config =
///     GenerationConfig { max_kv_size: Some(512), kv_keep: Some(16), ..Default::default() };
/// let bound = config.cache_choice(2000)?.0.bound;
/// assert_eq!(bound, Some(CacheBound { keep: 16, size: 512 }));
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheBound {
    /// The row's first tokens that stay visible; fewer than `size`.
    pub keep: usize,
    /// Tokens that a query sees, itself and those included.
    pub size: usize,
}

/// See [`CacheChoice::quantization`].
///
/// ```
/// use mlxgk_generation_config::{CacheQuantization, GenerationConfig};
///
/// let config =
///     GenerationConfig { kv_bits: Some(8), quantized_kv_start: Some(64), ..Default::default() };
/// let packed = config.cache_choice(2000)?.0.quantization;
/// assert_eq!(packed, Some(CacheQuantization { bits: 8, group_size: None, start: 64 }));
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheQuantization {
    /// 2, 3, 4, 5, 6 or 8.
    pub bits: i32,
    /// 32, 64 or 128; `None` leaves it to the model's head dimension.
    pub group_size: Option<i32>,
    /// Tokens that are held before anything is packed.
    pub start: usize,
}

impl GenerationConfig {
    /// The cache that these fields ask for, for sequences of at most `max_length` tokens, and warnings
    /// about them.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a value that no cache can have, and for two fields that contradict each
    /// other.
    ///
    /// ```
    /// use mlxgk_generation_config::GenerationConfig;
    ///
    /// let config = GenerationConfig { max_kv_size: Some(1024), ..Default::default() };
    /// let bound = config.cache_choice(2000)?.0.bound.unwrap();
    /// assert_eq!((bound.keep, bound.size), (4, 1024));
    /// # Ok::<(), mlxgk_generation_config::Error>(())
    /// ```
    pub fn cache_choice(&self, max_length: usize) -> Result<(CacheChoice, Vec<Warning>)> {
        let mut warnings = Vec::new();
        let choice = CacheChoice {
            bound: self.cache_bound()?,
            quantization: self.cache_quantization(&mut warnings)?,
            capacity: self
                .has_static_cache()
                .then(|| self.max_cache_len.max(Some(max_length)))
                .flatten(),
        };
        Ok((choice, warnings))
    }

    fn cache_bound(&self) -> Result<Option<CacheBound>> {
        let Some(size) = self.max_kv_size else { return Ok(None) };
        let keep = self.kv_keep.unwrap_or(DEFAULT_KEEP);
        if size <= keep {
            let what = format!(
                "is {size}, but the first {keep} tokens stay visible (`kv_keep`), so it must be larger"
            );
            return Err(wrong("max_kv_size", &what));
        }
        Ok(Some(CacheBound { keep, size }))
    }

    fn cache_quantization(&self, warnings: &mut Vec<Warning>) -> Result<Option<CacheQuantization>> {
        let by_name = self.cache_implementation.as_deref() == Some("quantized");
        if !by_name && self.kv_bits.is_none() {
            return Ok(None);
        }
        let (mut bits, mut group_size) = (self.kv_bits, self.kv_group_size);
        for (key, value) in self.cache_config.iter().flatten().filter(|_| by_name) {
            let (field, own) = match key.as_str() {
                "nbits" => ("kv_bits", &mut bits),
                "q_group_size" => ("kv_group_size", &mut group_size),
                "backend" => {
                    let message = format!(
                        "`cache_config` asks for the backend {value}, but keys and values are packed \
                         in MLX's affine format"
                    );
                    warnings.push(Warning::new(WarningKind::Idle, "cache_config", message));
                    continue;
                }
                other => {
                    let what = format!(
                        "holds {other:?}, which a quantized cache here does not have: only nbits, \
                         q_group_size and backend"
                    );
                    return Err(wrong("cache_config", &what));
                }
            };
            let Some(number) = value.as_u64().and_then(|it| usize::try_from(it).ok()) else {
                let what = format!("holds {value} for {key:?}, which must be a whole number");
                return Err(wrong("cache_config", &what));
            };
            if own.is_some_and(|it| it != number) {
                let what = format!("holds {number} for {key:?}, which contradicts `{field}`");
                return Err(wrong("cache_config", &what));
            }
            *own = Some(number);
        }
        let bits = bits.unwrap_or(DEFAULT_BITS);
        if !matches!(bits, 2..=6 | 8) {
            return Err(wrong("kv_bits", &format!("must be 2, 3, 4, 5, 6 or 8, but is {bits}")));
        }
        if let Some(size) = group_size.filter(|it| !matches!(it, 32 | 64 | 128)) {
            return Err(wrong("kv_group_size", &format!("must be 32, 64 or 128, but is {size}")));
        }
        Ok(Some(CacheQuantization {
            bits: bits as i32,
            group_size: group_size.map(|it| it as i32),
            start: self.quantized_kv_start.unwrap_or(0),
        }))
    }

    /// Fields that change nothing because another is not set.
    pub(crate) fn idle_cache_fields(&self) -> Vec<Warning> {
        let is_quantized =
            self.kv_bits.is_some() || self.cache_implementation.as_deref() == Some("quantized");
        let packed = "only a quantized cache reads it: set `kv_bits`";
        let bounded = "only a bounded cache reads it: set `max_kv_size`";
        [
            ("kv_group_size", is_quantized, packed),
            ("quantized_kv_start", is_quantized, packed),
            ("kv_keep", self.max_kv_size.is_some(), bounded),
        ]
        .into_iter()
        .filter(|(_, is_read, _)| !is_read)
        .filter_map(|(field, _, why)| {
            let value: Value = self.get(field)?;
            let message = format!("`{field}` is {value}, but {why}");
            Some(Warning::new(WarningKind::Idle, field, message))
        })
        .collect()
    }
}

fn wrong(field: &str, what: &str) -> Error {
    Error::of(ErrorKind::Value, field, format!("`{field}` {what}"))
}
