//! The crate's one error type.

use std::{fmt, sync::Arc};

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_training::{Batch, Ema, ErrorKind, SoftPrompt};
///
/// assert_eq!(Batch::new(&[]).unwrap_err().kind(), ErrorKind::Data);
/// assert_eq!(Ema::new(&[], 1.5, false).unwrap_err().kind(), ErrorKind::Config);
/// assert_eq!(SoftPrompt::load("./no-folder").unwrap_err().kind(), ErrorKind::File);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A batch or a data row cannot be used.
    Data,
    /// A setting is out of range, or two do not go together.
    Config,
    /// An adapter cannot be read, or it or a soft prompt does not fit the model.
    Adapter,
    /// A file is missing, damaged, or cannot be written.
    File,
    /// Numbers that are not finite came out of a step.
    NotFinite,
    /// The model or MLX failed.
    Run,
}

/// Why training failed, in one sentence.
///
/// Two are equal where kind and sentence are.
///
/// ```
/// use mlxgk_training::{Batch, ErrorKind, Example};
///
/// let example = Example { tokens: vec![5, 17, 300], labels: vec![5, 17] };
/// let error = Batch::new(&[example]).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Data);
/// println!("{error}"); // names the row: it has not one label per token
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
    /// An error of the given kind; the message names the file, row, setting or tensor.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    pub(crate) fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// What cannot be read of an adapter's files.
    pub(crate) fn of_adapter(self) -> Self {
        let kind = if self.kind == ErrorKind::File { ErrorKind::Adapter } else { self.kind };
        Self { kind, ..self }
    }

    fn caused(kind: ErrorKind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let message = source.to_string();
        Self { source: Some(Arc::new(source)), ..Self::new(kind, message) }
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

impl From<mlx_rs::error::Exception> for Error {
    fn from(source: mlx_rs::error::Exception) -> Self {
        let message = source.what().to_owned();
        Self { message, ..Self::caused(ErrorKind::Run, source) }
    }
}

impl From<mlxgk_mlx_models::Error> for Error {
    fn from(source: mlxgk_mlx_models::Error) -> Self {
        Self::caused(ErrorKind::Run, source)
    }
}
