//! The crate's one error type.

use std::fmt;

/// What went wrong; see [`Error::kind`].
///
/// ```
/// use mlxgk_logits_processors::{Context, ErrorKind, LogitsProcessor, NoRepeatNGram, TokenBias};
///
/// assert_eq!(NoRepeatNGram::new(0).unwrap_err().kind(), ErrorKind::Parameter);
/// let beyond = TokenBias::new([(7, 1.0)])?.process(&Context::new(&[0], 1), &mut [0.5; 4]);
/// assert_eq!(beyond.unwrap_err().kind(), ErrorKind::Token);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A parameter is outside its range.
    Parameter,
    /// A token id is not below the vocabulary size.
    Token,
    /// No token can be chosen: all are banned, or a score is NaN or infinitely high.
    NoTokenAllowed,
    /// A caller's own function failed or broke its contract.
    Callback,
}

/// A parameter, token or callback that cannot be used, in one sentence.
///
/// ```
/// use mlxgk_logits_processors::{ErrorKind, RepetitionPenalty};
///
/// let error = RepetitionPenalty::new(-1.0).unwrap_err();
/// assert_eq!((error.kind(), error.field()), (ErrorKind::Parameter, Some("repetition_penalty")));
/// assert_eq!(error.to_string(), "`repetition_penalty` must be a finite number above 0, but is -1");
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
    /// An error of the given kind about no single parameter.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, field: None, message: message.into() }
    }

    /// An error about one parameter, which the message names too.
    pub fn about(field: &str, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, field: Some(field.to_owned()), message: message.into() }
    }

    /// A parameter outside its range: "`name` must be `rule`, but is `value`".
    pub fn parameter(name: &str, rule: &str, value: impl fmt::Display) -> Self {
        let mut value = value.to_string();
        // Of a float that is far from 1, most digits are zeros.
        if value.len() > 24
            && let Ok(number) = value.parse::<f64>()
        {
            value = format!("{number:e}");
        }
        let message = format!("`{name}` must be {rule}, but is {value}");
        Self::about(name, ErrorKind::Parameter, message)
    }

    /// A parameter that names a token the scores do not cover.
    pub fn beyond_vocabulary(name: &str, token: u32, vocabulary: usize) -> Self {
        let message =
            format!("`{name}` names token {token}, but the vocabulary has {vocabulary} entries");
        Self::about(name, ErrorKind::Token, message)
    }

    /// The kind, for callers that react to it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The parameter at fault under its HF name, where it is one.
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

/// A parameter that HF demands to be strictly positive, as the fp32 number torch computes with.
pub(crate) fn positive(name: &str, value: f64) -> Result<f32> {
    match value as f32 {
        narrow if narrow.is_finite() && narrow > 0.0 => Ok(narrow),
        _ if value.is_finite() && value > 0.0 => {
            Err(Error::parameter(name, "a number above 0 that fp32 can hold", value))
        }
        _ => Err(Error::parameter(name, "a finite number above 0", value)),
    }
}

/// A parameter of any sign, as the fp32 number torch computes with.
pub(crate) fn finite(name: &str, value: f64) -> Result<f32> {
    match value as f32 {
        narrow if narrow.is_finite() => Ok(narrow),
        _ if value.is_finite() => Err(Error::parameter(name, "a number that fp32 can hold", value)),
        _ => Err(Error::parameter(name, "a finite number", value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_fp32_cannot_hold_are_written_shortly() {
        for (value, expected) in [
            (1e300, "`a` must be a number above 0 that fp32 can hold, but is 1e300"),
            (1e-300, "`a` must be a number above 0 that fp32 can hold, but is 1e-300"),
            (-1e300, "`a` must be a finite number above 0, but is -1e300"),
            (f64::INFINITY, "`a` must be a finite number above 0, but is inf"),
        ] {
            assert_eq!(positive("a", value).unwrap_err().to_string(), expected);
        }
        let error = finite("a", -1e39).unwrap_err().to_string();
        assert_eq!(error, "`a` must be a number that fp32 can hold, but is -1e39");
    }
}
