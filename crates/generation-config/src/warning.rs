//! Warnings about a configuration: nothing that has to stop a request.

use std::fmt;

/// What a [`Warning`] is about.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, WarningKind};
/// use serde_json::json;
///
/// let config = GenerationConfig::from_json(&json!({"pad_token_id": -1, "top_p": 0.9}))?;
/// let kinds: Vec<_> = config.validate()?.iter().map(|it| it.kind()).collect();
/// assert_eq!(kinds, [WarningKind::TokenId, WarningKind::Idle]);
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WarningKind {
    /// A field is set that the rest of the configuration makes idle (HF's "minor issues").
    Idle,
    /// Lengths that contradict one another, or the default length.
    Length,
    /// A token id that no model emits.
    TokenId,
    /// A field that this version of transformers does not know.
    UnknownField,
    /// Something in a grammar that is not enforced.
    Grammar,
}

/// A warning about one field, in one sentence; nothing is refused.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, WarningKind};
///
/// let config = GenerationConfig { top_p: Some(0.9), ..Default::default() };
/// let warnings = config.validate()?;
/// assert_eq!((warnings[0].kind(), warnings[0].field()), (WarningKind::Idle, "top_p"));
/// println!("{}", warnings[0]); // a sentence: without `do_sample` it does nothing
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    kind: WarningKind,
    field: String,
    message: String,
}

impl Warning {
    /// A warning about a field; the message names it too.
    pub fn new(kind: WarningKind, field: &str, message: impl Into<String>) -> Self {
        Self { kind, field: field.to_owned(), message: message.into() }
    }

    /// The kind, for callers that sort or silence warnings.
    pub fn kind(&self) -> WarningKind {
        self.kind
    }

    /// The field under its HF name.
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
