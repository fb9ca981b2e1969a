//! The crate's one error type.

use std::{fmt, sync::Arc};

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_steering::{ErrorKind, HookPoint, Schedule, SteeringVectors};
///
/// let empty = SteeringVectors::new([(HookPoint::FinalNorm, vec![])]);
/// assert_eq!(empty.unwrap_err().kind(), ErrorKind::Vector);
/// let schedule = Schedule::Warmup { steps: 0 }.check();
/// assert_eq!(schedule.unwrap_err().kind(), ErrorKind::Parameter);
/// assert_eq!(SteeringVectors::load("./missing").unwrap_err().kind(), ErrorKind::File);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file is missing, damaged, or in no known format.
    File,
    /// A vector has the wrong length, a value that is not finite, or no direction.
    Vector,
    /// A layer that the model or the file does not have.
    Layer,
    /// An operation, schedule or position that cannot be understood or selects nothing.
    Parameter,
    /// Two vectors claim one position where that is not allowed.
    Conflict,
    /// Contrast pairs that do not pair up, or too few of them.
    Pairs,
    /// The model or MLX failed.
    Run,
}

/// Why steering failed, in one sentence.
///
/// Two are equal where kind and sentence are.
///
/// ```
/// use mlxgk_steering::{ErrorKind, HookPoint, SteeringVectors};
///
/// let joy = SteeringVectors::new([(HookPoint::ResidPost(2), vec![0.5, 1.0])])?;
/// let error = joy.at_layers(&[3]).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Layer);
/// println!("{error}"); // no vector for layer 3; expected one of ...
/// # Ok::<(), mlxgk_steering::Error>(())
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
    /// An error of the given kind; the message names the file, tensor, layer or parameter.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn parameter(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Parameter, message)
    }

    /// A name that is not among the known ones.
    pub(crate) fn unknown(what: &str, text: &str, known: &str) -> Self {
        Self::parameter(format!("unknown {what} {text:?}; expected one of {known}"))
    }

    /// Says which file, vector or pair is meant.
    pub(crate) fn of(self, what: impl fmt::Display) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
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
        Self::new(ErrorKind::Run, source.what())
    }
}

impl From<mlxgk_mlx_models::Error> for Error {
    fn from(source: mlxgk_mlx_models::Error) -> Self {
        Self::caused(ErrorKind::Run, source)
    }
}

/// A hook's error ends the forward pass as a model error.
impl From<Error> for mlxgk_mlx_models::Error {
    fn from(source: Error) -> Self {
        Self::caused(mlxgk_mlx_models::ErrorKind::Hook, source)
    }
}
