//! The crate's one error type.

use std::{fmt, io, path::Path, sync::Arc};

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_model_hub::{ErrorKind, Mode, ModelId, Scheme};
///
/// assert_eq!("../weights".parse::<ModelId>().unwrap_err().kind(), ErrorKind::Name);
/// let seven_bits = Scheme::new(Mode::Affine, Some(7), None);
/// assert_eq!(seven_bits.unwrap_err().kind(), ErrorKind::Settings);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The name is neither a folder nor a hub id.
    Name,
    /// The model is not on this machine, and the network may not be used.
    Offline,
    /// The hub does not have the model, the revision or the file.
    NotFound,
    /// The hub wants a token, or the token has no access.
    Access,
    /// The hub could not be reached, or answered with an error, more often than is retried.
    Network,
    /// What arrived is not what the hub announced, or a file is not what its header says.
    Damaged,
    /// The model has no files that this project can load or convert.
    Unsupported,
    /// A conversion's settings contradict each other, or the model.
    Settings,
    /// A file could not be read or written.
    File,
}

/// Why a model was not found or downloaded, in one sentence.
///
/// ```
/// use mlxgk_model_hub::{ErrorKind, Hub, NoProgress};
///
/// let cache = tempfile::tempdir().unwrap();
/// let hub = Hub::builder()?.cache(cache.path()).offline(true).build();
/// let error = hub.find("Qwen/Qwen3-0.6B", &mut NoProgress).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Offline);
/// println!("{error}"); // names the model, the cache and what forbids the network
/// # Ok::<(), mlxgk_model_hub::Error>(())
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
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn file(doing: &str, path: &Path, source: io::Error) -> Self {
        let message = format!("{doing} {}: {source}", path.display());
        Self { kind: ErrorKind::File, message, source: Some(Arc::new(source)) }
    }

    pub(crate) fn caused_by(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Arc::new(source)), ..self }
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

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|it| it as _)
    }
}
