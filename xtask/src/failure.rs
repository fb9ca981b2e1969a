//! Why a chore stopped: a sentence for the user, and the exit status that goes with it.

use std::fmt::Display;

/// The exit status for something the user must change: a missing tool, an unknown option.
const USAGE: u8 = 2;

/// A chore that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: Option<String>,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// The chore itself went wrong (status 1).
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { status: 1, message: Some(message.into()) }
    }

    /// The user must change something first (status 2).
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { status: USAGE, message: Some(message.into()) }
    }

    /// A program that was started in the user's name failed, and has printed why itself.
    pub(crate) fn silent(status: u8) -> Self {
        Self { status, message: None }
    }

    /// What to tell the user, if it has not been printed.
    pub(crate) fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// The exit status of `cargo xtask`.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }
}

/// Names what was being done when an error of the standard library came up.
pub(crate) trait Context<T> {
    /// Turns an error into a [`Failure`] that begins with `doing()`.
    fn context<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Failure::new(format!("{}: {error}", doing())))
    }
}
