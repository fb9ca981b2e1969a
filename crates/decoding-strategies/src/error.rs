//! The crate's one error type.

use std::fmt;

/// What went wrong; see [`Error::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A prompt is empty or does not fit.
    Prompt,
    /// The model or its cache failed.
    Model,
    /// A processor cannot use a parameter or token it was given.
    Processor,
    /// A constraint cannot be used, or was not met.
    Constraint,
    /// No token may come next, or the scores are NaN.
    NoToken,
    /// A stopping criterion cannot tell whether a row ends.
    Criterion,
}

/// A sequence that cannot be continued, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
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

impl From<mlxgk_mlx_models::Error> for Error {
    fn from(source: mlxgk_mlx_models::Error) -> Self {
        Self::new(ErrorKind::Model, source.to_string())
    }
}

impl From<mlxgk_kv_cache::Error> for Error {
    fn from(source: mlxgk_kv_cache::Error) -> Self {
        Self::new(ErrorKind::Model, source.to_string())
    }
}

impl From<mlxgk_logits_processors::Error> for Error {
    fn from(source: mlxgk_logits_processors::Error) -> Self {
        use mlxgk_logits_processors::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::NoTokenAllowed => ErrorKind::NoToken,
            _ => ErrorKind::Processor,
        };
        Self::new(kind, source.to_string())
    }
}

impl From<mlx_rs::error::Exception> for Error {
    fn from(source: mlx_rs::error::Exception) -> Self {
        Self::new(ErrorKind::Model, source.what())
    }
}
