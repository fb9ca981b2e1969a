//! What goes wrong, as an exit status and one sentence.

use std::{fmt, process::ExitCode};

use mlx_genkit::ErrorKind;

use crate::terminal;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// The command line, or a config it names, is wrong.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { status: 2, message: message.to_string() }
    }

    /// Anything else.
    pub(crate) fn other(message: impl fmt::Display) -> Self {
        Self { status: 1, message: message.to_string() }
    }

    /// Prints the sentence and returns the status.
    pub(crate) fn report(&self) -> ExitCode {
        terminal::error(&self.message);
        ExitCode::from(self.status)
    }
}

impl From<mlx_genkit::Error> for Failure {
    fn from(error: mlx_genkit::Error) -> Self {
        match error.kind() {
            ErrorKind::Request => Self::usage(error),
            _ => Self::other(error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::other(format_args!("cannot write the output: {error}"))
    }
}
