//! The crate's one error type.

use std::{fmt, sync::Arc};

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_decoding_strategies::{Constraint, ErrorKind, LeftPadded};
///
/// assert_eq!(LeftPadded::new(&[], 0).unwrap_err().kind(), ErrorKind::Prompt);
/// assert_eq!(Constraint::phrase(vec![]).unwrap_err().kind(), ErrorKind::Constraint);
/// ```
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
///
/// Two are equal where kind and sentence are.
///
/// ```
/// use mlxgk_decoding_strategies::{DecoderSession, ErrorKind, LeftPadded};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9_999]], 0)?;
/// let error = DecoderSession::prefill(&model, &prompts, 64, NoHook).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Model);
/// println!("{error}"); // names the token, and how many the vocabulary has
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    fn caused(kind: ErrorKind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let message = source.to_string();
        Self { source: Some(Arc::new(source)), ..Self::new(kind, message) }
    }

    /// What a stopping criterion could not tell.
    pub(crate) fn of_criterion(source: mlxgk_logits_processors::Error) -> Self {
        Self::caused(ErrorKind::Criterion, source)
    }

    /// The kind, for callers that react to it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.message) == (other.kind, &other.message)
    }
}

impl Eq for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|it| it as _)
    }
}

impl From<mlxgk_mlx_models::Error> for Error {
    fn from(source: mlxgk_mlx_models::Error) -> Self {
        Self::caused(ErrorKind::Model, source)
    }
}

impl From<mlxgk_kv_cache::Error> for Error {
    fn from(source: mlxgk_kv_cache::Error) -> Self {
        Self::caused(ErrorKind::Model, source)
    }
}

impl From<mlxgk_logits_processors::Error> for Error {
    fn from(source: mlxgk_logits_processors::Error) -> Self {
        use mlxgk_logits_processors::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::NoTokenAllowed => ErrorKind::NoToken,
            _ => ErrorKind::Processor,
        };
        Self::caused(kind, source)
    }
}

impl From<mlx_rs::error::Exception> for Error {
    fn from(source: mlx_rs::error::Exception) -> Self {
        Self::new(ErrorKind::Model, source.what())
    }
}
