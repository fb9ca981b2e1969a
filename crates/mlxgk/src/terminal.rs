//! The two channels: results on stdout, everything else on stderr.

use std::{
    fmt::Display,
    io::{IsTerminal, Result, Write, stderr, stdout},
};

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

/// Longer sentences hold a file's content; their middle is left out.
const LONGEST: usize = 380;

fn shortened(message: &str) -> std::borrow::Cow<'_, str> {
    let count = message.chars().count();
    if count <= LONGEST {
        return message.into();
    }
    let (head, tail) = (LONGEST * 2 / 3, LONGEST / 3 - 3);
    let at = |n: usize| message.char_indices().nth(n).map_or(message.len(), |(at, _)| at);
    format!("{}...{}", &message[..at(head)], &message[at(count - tail)..]).into()
}

fn label(label: &str, colour: &str, message: &str) {
    let message = shortened(message);
    if coloured() {
        remark(format_args!("\x1b[1;{colour}m{label}:\x1b[0m {message}"));
    } else {
        remark(format_args!("{label}: {message}"));
    }
}

/// A line about progress or figures, dimmed; only for people, so only on a terminal.
pub(crate) fn note(message: &str) {
    if !stderr().is_terminal() {
        return;
    }
    if coloured() {
        remark(format_args!("\x1b[2m{message}\x1b[0m"));
    } else {
        remark(message);
    }
}

/// Asks for a line; only for people, so on stderr.
pub(crate) fn cue(text: &str) {
    let mut out = stderr();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A line beside the results. Not `eprintln!`, which panics when stderr is closed.
pub(crate) fn remark(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

/// Writes a piece of the result at once, so that text appears as it is made.
pub(crate) fn piece(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line of the result.
pub(crate) fn line(text: impl Display) -> Result<()> {
    writeln!(stdout().lock(), "{text}")
}
