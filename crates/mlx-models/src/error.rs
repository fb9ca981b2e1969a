//! The crate's one error type.

use std::{fmt, sync::Arc};

use mlx_rs::error::Exception;

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, ErrorKind};
///
/// let missing = Decoder::load("./no-folder", ComputeDtype::Auto);
/// assert_eq!(missing.unwrap_err().kind(), ErrorKind::File);
/// let config = Decoder::from_bytes(br#"{"model_type": "abacus"}"#, &[], ComputeDtype::Auto);
/// assert_eq!(config.unwrap_err().kind(), ErrorKind::Config);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or folder is missing or cannot be read.
    File,
    /// `config.json` lacks a field, or has one of the wrong type or value.
    Config,
    /// A weight file is damaged, or a tensor is missing, unknown or of the wrong shape.
    Weights,
    /// A token id is not below the vocabulary size, or a batch is ragged or empty.
    Tokens,
    /// The cache does not belong to this model, or refused.
    Cache,
    /// A residual hook failed.
    Hook,
    /// MLX refused an operation.
    Mlx,
}

/// A model that cannot be loaded or run, in one sentence.
///
/// Two are equal where kind and sentence are.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, ErrorKind};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let error = model.logits_of(&[&[5, 9_999]]).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Tokens);
/// assert!(error.to_string().contains("9999"));
/// # Ok::<(), mlxgk_mlx_models::Error>(())
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
    /// An error of the given kind; the message names the file, field, tensor or token.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Puts what the model was doing in front of MLX's own words.
    pub fn mlx(doing: impl fmt::Display, source: &Exception) -> Self {
        Self::new(ErrorKind::Mlx, format!("{doing}: {}", source.what()))
    }

    /// Puts what the model was doing in front of the message.
    pub(crate) fn during(self, doing: impl fmt::Display) -> Self {
        Self { message: format!("{doing}: {}", self.message), ..self }
    }

    /// An error in the words of its cause, which stays its [`source`](std::error::Error::source).
    pub fn caused(kind: ErrorKind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
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

/// Inside a block the operation's own text, which names the shapes, is all there is; the decoder
/// loop adds the layer.
impl From<Exception> for Error {
    fn from(source: Exception) -> Self {
        Self::new(ErrorKind::Mlx, source.what())
    }
}

impl From<mlxgk_kv_cache::Error> for Error {
    fn from(source: mlxgk_kv_cache::Error) -> Self {
        Self::caused(ErrorKind::Cache, source)
    }
}
