//! What goes wrong, as an exit status and one sentence.

use std::{fmt, io, process::ExitCode};

use mlx_genkit::ErrorKind;

use crate::terminal;

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line, or a config it names, is wrong.
    Usage(String),
    /// Anything else.
    Other(String),
    /// A command line without a subcommand, answered by the help.
    NothingAsked,
    /// The reader has closed the pipe (`mlxgk ... | head`), which is not an error.
    OutputClosed,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::Usage(message.to_string())
    }

    pub(crate) fn other(message: impl fmt::Display) -> Self {
        Self::Other(message.to_string())
    }

    /// Prints the sentence and returns the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        let (status, message) = match self {
            Self::Usage(message) => (2, message),
            Self::Other(message) => (1, message),
            Self::NothingAsked => return ExitCode::from(2),
            Self::OutputClosed => return ExitCode::SUCCESS,
        };
        terminal::error(message);
        ExitCode::from(status)
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

impl From<mlxgk_model_hub::Error> for Failure {
    fn from(error: mlxgk_model_hub::Error) -> Self {
        match error.kind() {
            mlxgk_model_hub::ErrorKind::Settings => Self::usage(error),
            _ => Self::other(error),
        }
    }
}

/// Only writing the output ends here; where a file is read, the error names it.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::other(format_args!("cannot write the output: {error}")),
        }
    }
}
