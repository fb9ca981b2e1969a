//! The crate's one error type.

use std::fmt;

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_tokenizer_bridge::{ErrorKind, Files, Tokenizer};
///
/// let missing = Tokenizer::from_files(&Files::default()).unwrap_err();
/// assert_eq!(missing.kind(), ErrorKind::MissingTokenizer);
/// let files = Files { tokenizer: Some(b"{".into()), ..Files::default() };
/// assert_eq!(Tokenizer::from_files(&files).unwrap_err().kind(), ErrorKind::File);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The folder has no `tokenizer.json`; work in token ids is still possible without one.
    MissingTokenizer,
    /// The model has no chat template, or none of the name asked for.
    MissingTemplate,
    /// A file cannot be read.
    Io,
    /// A file's content cannot be used: not UTF-8, not JSON, a field of the wrong type.
    File,
    /// The tokenizer cannot encode or decode what it was given.
    Tokenizer,
    /// A chat template has a syntax error, or failed while it was rendered.
    Template,
    /// A chat template refused the conversation by calling `raise_exception`.
    Refused,
    /// There is no string to stop at, or an empty one.
    StopString,
    /// The conversation or the options cannot be rendered by any template.
    Conversation,
}

/// A file, a text or a conversation that cannot be used, in one sentence.
///
/// ```
/// use mlxgk_tokenizer_bridge::{ErrorKind, Files, SpecialIds};
///
/// let files = Files { config: Some(br#"{"eos_token_id": "</s>"}"#.into()), ..Files::default() };
/// let error = SpecialIds::from_files(&files, None).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::File);
/// assert!(error.to_string().contains("eos_token_id"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind; the message names the file, the field or the template.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The kind, for callers that react to it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// A file whose content cannot be used.
    pub(crate) fn file(name: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self::because(ErrorKind::File, &name, what)
    }

    /// A failure inside the `tokenizers` crate, which reports boxed errors without a kind.
    #[cfg(feature = "tokenizer")]
    pub(crate) fn tokenizer(doing: &str, what: impl fmt::Display) -> Self {
        Self::because(ErrorKind::Tokenizer, &format_args!("cannot {doing}"), what)
    }

    /// An error with another library's words for the reason, which may end in a full stop.
    fn because(kind: ErrorKind, what: &dyn fmt::Display, why: impl fmt::Display) -> Self {
        let why = why.to_string();
        Self::new(kind, format!("{what}: {}", why.trim_end_matches('.')))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
