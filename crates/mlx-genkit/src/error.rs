//! The facade's one error type.

use std::{fmt, sync::Arc};

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlx_genkit::{ComputeDtype, ErrorKind, Model, Request};
///
/// let missing = Model::load("./no-folder", ComputeDtype::Auto);
/// assert_eq!(missing.unwrap_err().kind(), ErrorKind::Model);
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// assert_eq!(model.plan(Request::new("")).unwrap_err().kind(), ErrorKind::Request);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
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
///
/// Two are equal where kind, field and sentence are.
///
/// ```
/// use mlx_genkit::{ComputeDtype, ErrorKind, GenerationConfig, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig { repetition_penalty: Some(-1.0), ..Default::default() };
/// let error = model.plan(Request::new("Once").config(config)).unwrap_err();
/// assert_eq!((error.kind(), error.field()), (ErrorKind::Request, Some("repetition_penalty")));
/// println!("{error}"); // `repetition_penalty` must be a finite number above 0, but is -1
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    field: Option<String>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), field: None, source: None }
    }

    /// A request that is wrong in one field of its configuration.
    pub(crate) fn of_field(field: &str, message: impl Into<String>) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(ErrorKind::Request, message) }
    }

    fn caused(kind: ErrorKind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let message = source.to_string();
        Self { source: Some(Arc::new(source)), ..Self::new(kind, message) }
    }

    /// Says which prompt of several is meant.
    pub(crate) fn of_prompt(self, index: usize) -> Self {
        Self { message: format!("prompt {index}: {}", self.message), ..self }
    }

    /// The kind, for callers that react to it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The field of the generation config that is wrong, where it is one.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }
}

impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.field, &self.message) == (other.kind, &other.field, &other.message)
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
        use mlxgk_mlx_models::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::Config | Kind::Tokens => ErrorKind::Request,
            Kind::File | Kind::Weights => ErrorKind::Model,
            _ => ErrorKind::Run,
        };
        Self::caused(kind, source)
    }
}

impl From<mlxgk_decoding_strategies::Error> for Error {
    fn from(source: mlxgk_decoding_strategies::Error) -> Self {
        use mlxgk_decoding_strategies::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::Prompt | Kind::Processor | Kind::Constraint => ErrorKind::Request,
            _ => ErrorKind::Run,
        };
        Self::caused(kind, source)
    }
}

impl From<mlxgk_generation_config::Error> for Error {
    fn from(source: mlxgk_generation_config::Error) -> Self {
        let field = source.field().map(str::to_owned);
        Self { field, ..Self::caused(ErrorKind::Request, source) }
    }
}

impl From<mlxgk_logits_processors::Error> for Error {
    fn from(source: mlxgk_logits_processors::Error) -> Self {
        let field = source.field().map(str::to_owned);
        Self { field, ..Self::caused(ErrorKind::Request, source) }
    }
}

impl From<mlxgk_kv_cache::Error> for Error {
    fn from(source: mlxgk_kv_cache::Error) -> Self {
        use mlxgk_kv_cache::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::Steering | Kind::Argument | Kind::File => ErrorKind::Request,
            _ => ErrorKind::Run,
        };
        Self::caused(kind, source)
    }
}

impl From<mlx_rs::error::Exception> for Error {
    fn from(source: mlx_rs::error::Exception) -> Self {
        let message = source.what().to_owned();
        Self { message, ..Self::caused(ErrorKind::Run, source) }
    }
}

impl From<mlxgk_steering::Error> for Error {
    fn from(source: mlxgk_steering::Error) -> Self {
        use mlxgk_steering::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::File | Kind::Run => ErrorKind::Run,
            _ => ErrorKind::Request,
        };
        Self::caused(kind, source)
    }
}

impl From<mlxgk_tokenizer_bridge::Error> for Error {
    fn from(source: mlxgk_tokenizer_bridge::Error) -> Self {
        use mlxgk_tokenizer_bridge::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::Refused | Kind::Conversation | Kind::StopString => ErrorKind::Request,
            _ => ErrorKind::Model,
        };
        Self::caused(kind, source)
    }
}

impl From<mlxgk_training::Error> for Error {
    fn from(source: mlxgk_training::Error) -> Self {
        use mlxgk_training::ErrorKind as Kind;
        let kind = match source.kind() {
            Kind::Data | Kind::Config | Kind::Adapter => ErrorKind::Request,
            Kind::File => ErrorKind::Model,
            _ => ErrorKind::Run,
        };
        Self::caused(kind, source)
    }
}
