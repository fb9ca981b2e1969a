//! The crate's one error type.

use std::fmt;

use mlx_rs::error::Exception;

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_kv_cache::{CacheFile, ErrorKind, KvCache, LayerSpec};
///
/// let mut cache = KvCache::new(&[LayerSpec::Full], 1);
/// assert_eq!(cache.trim(1).unwrap_err().kind(), ErrorKind::Argument);
/// let missing = CacheFile::open("./no-such-file.safetensors");
/// assert_eq!(missing.unwrap_err().kind(), ErrorKind::File);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A row, layer or count that the cache does not have.
    Argument,
    /// The cache no longer holds what the operation needs.
    Dropped,
    /// What is held went through another steering.
    Steering,
    /// A file cannot be read, or is not a cache of this model.
    File,
    /// A file cannot be written.
    Write,
    /// MLX refused an operation.
    Mlx,
}

/// An operation that the cache cannot carry out, in one sentence.
///
/// ```
/// use mlxgk_kv_cache::{ErrorKind, KvCache, LayerSpec};
///
/// let mut cache = KvCache::new(&[LayerSpec::Full], 1);
/// let error = cache.begin_tokens(&[&[5], &[9]], &[]).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Argument);
/// println!("{error}"); // two rows of tokens for a cache of one
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Argument, message: message.into() }
    }

    pub(crate) fn dropped(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Dropped, message: message.into() }
    }

    pub(crate) fn steering(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Steering, message: message.into() }
    }

    pub(crate) fn file(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::File, message: message.into() }
    }

    pub(crate) fn write(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Write, message: message.into() }
    }

    /// Puts what the cache was doing in front of MLX's own words.
    pub(crate) fn mlx(doing: &str, source: &Exception) -> Self {
        Self { kind: ErrorKind::Mlx, message: format!("{doing}: {}", source.what()) }
    }

    /// The kind, for callers that react to it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
