//! The facade's one error type.

use std::fmt;

/// What went wrong; see [`Error::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was asked for is wrong: a prompt, a field of a generation config, or a model's config.
    Request,
    /// The model's files cannot be read or do not fit together.
    Model,
    /// The model failed while it ran.
    Run,
}

/// A request that cannot be served, in one sentence.
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

    /// Says which prompt of several is meant.
    pub(crate) fn of_prompt(self, index: usize) -> Self {
        Self { message: format!("prompt {index}: {}", self.message), ..self }
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
        use mlxgk_mlx_models::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::Config | Kind::Tokens => ErrorKind::Request,
            Kind::File | Kind::Weights => ErrorKind::Model,
            _ => ErrorKind::Run,
        };
        Self::new(kind, source.to_string())
    }
}

impl From<mlxgk_decoding_strategies::Error> for Error {
    fn from(source: mlxgk_decoding_strategies::Error) -> Self {
        use mlxgk_decoding_strategies::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::Prompt | Kind::Processor | Kind::Constraint => ErrorKind::Request,
            _ => ErrorKind::Run,
        };
        Self::new(kind, source.to_string())
    }
}

impl From<mlxgk_generation_config::Error> for Error {
    fn from(source: mlxgk_generation_config::Error) -> Self {
        Self::new(ErrorKind::Request, source.to_string())
    }
}

impl From<mlxgk_logits_processors::Error> for Error {
    fn from(source: mlxgk_logits_processors::Error) -> Self {
        Self::new(ErrorKind::Request, source.to_string())
    }
}

impl From<mlxgk_steering::Error> for Error {
    fn from(source: mlxgk_steering::Error) -> Self {
        use mlxgk_steering::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::File | Kind::Run => ErrorKind::Run,
            _ => ErrorKind::Request,
        };
        Self::new(kind, source.to_string())
    }
}

impl From<mlxgk_tokenizer_bridge::Error> for Error {
    fn from(source: mlxgk_tokenizer_bridge::Error) -> Self {
        use mlxgk_tokenizer_bridge::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::Refused | Kind::Conversation => ErrorKind::Request,
            _ => ErrorKind::Model,
        };
        Self::new(kind, source.to_string())
    }
}
