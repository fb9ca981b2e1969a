//! The two channels: results on stdout, everything else on stderr.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program prints")]

use std::io::{IsTerminal, Write, stderr, stdout};

/// Whether stderr takes colours: a terminal, and `NO_COLOR` unset or empty (no-color.org).
fn coloured() -> bool {
    stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
}

/// One sentence about what went wrong.
pub(crate) fn error(message: &str) {
    label("error", "31", message);
}

/// One sentence about what is odd.
pub(crate) fn warning(message: &str) {
    label("warning", "33", message);
}

fn label(label: &str, colour: &str, message: &str) {
    if coloured() {
        eprintln!("\x1b[1;{colour}m{label}:\x1b[0m {message}");
    } else {
        eprintln!("{label}: {message}");
    }
}

/// A line about progress or figures, dimmed; only for people, so only on a terminal.
pub(crate) fn note(message: &str) {
    if !stderr().is_terminal() {
        return;
    }
    if coloured() {
        eprintln!("\x1b[2m{message}\x1b[0m");
    } else {
        eprintln!("{message}");
    }
}

/// Writes a piece of the result at once, so that text appears as it is made.
pub(crate) fn piece(text: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line of the result.
pub(crate) fn line(text: &str) -> std::io::Result<()> {
    writeln!(stdout().lock(), "{text}")
}
