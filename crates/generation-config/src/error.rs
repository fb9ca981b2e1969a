//! The crate's one error type.

use std::fmt;

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_generation_config::{ErrorKind, GenerationConfig};
/// use serde_json::json;
///
/// let kind = |value| GenerationConfig::from_json(&value).unwrap_err().kind();
/// assert_eq!(kind(json!([])), ErrorKind::Json);
/// assert_eq!(kind(json!({"top_k": "many"})), ErrorKind::Type);
/// assert_eq!(kind(json!({"max_new_tokens": 0})), ErrorKind::Value);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file could not be read or written.
    File,
    /// The text is not JSON, or not a JSON object.
    Json,
    /// A field holds a value of another type.
    Type,
    /// A field's value is impossible, alone or beside another field's.
    Value,
    /// A keyword argument that no field and no custom entry answers to.
    UnknownField,
    /// The prompt and the length fields leave no room for a token.
    Length,
    /// A field asks for something that is not implemented yet.
    Unsupported,
}

/// A configuration that cannot be used, in one sentence that names the field.
///
/// ```
/// use mlxgk_generation_config::{ErrorKind, GenerationConfig};
///
/// let config = GenerationConfig { num_return_sequences: Some(3), ..Default::default() };
/// let error = config.validate().unwrap_err();
/// assert_eq!((error.kind(), error.field()), (ErrorKind::Value, Some("num_return_sequences")));
/// println!("{error}"); // ... is 3, but greedy search has a single answer: set `do_sample`
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    field: Option<String>,
    message: String,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error about no single field.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, field: None, message: message.into() }
    }

    /// An error about `field`; the message names it too.
    pub(crate) fn of(kind: ErrorKind, field: &str, message: impl Into<String>) -> Self {
        Self { kind, field: Some(field.to_owned()), message: message.into() }
    }

    /// The same error, naming a file.
    pub(crate) fn in_file(mut self, file: &std::path::Path) -> Self {
        self.message = format!("{}: {}", file.display(), self.message);
        self
    }

    /// The kind, for callers that react to it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The field at fault under its HF name, where it is one.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
