//! The two channels: results on stdout, everything else on stderr.

use std::{
    fmt::Display,
    io::{IsTerminal, Result, Write, stderr, stdout},
    sync::atomic::{AtomicBool, Ordering},
};

use anstyle::{AnsiColor, Style};

/// Whether nothing but results and errors is printed.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Prints nothing but results and errors from now on: `--quiet`.
pub(crate) fn silence() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether progress and notes are shown: to a person, who has not asked for quiet.
pub(crate) fn is_chatty() -> bool {
    stderr().is_terminal() && !QUIET.load(Ordering::Relaxed)
}

/// One sentence about what went wrong.
pub(crate) fn error(message: &str) {
    label("error", AnsiColor::Red, message);
}

/// One sentence about what may not be meant.
pub(crate) fn warning(message: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        label("warning", AnsiColor::Yellow, message);
    }
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

/// A message on one line, without what a terminal would take for a command: a chat template may refuse
/// with any text.
fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    let shown = |it: char| if it.is_control() { char::REPLACEMENT_CHARACTER } else { it };
    lines.join(" ").chars().map(shown).collect()
}

fn label(label: &str, colour: AnsiColor, message: &str) {
    let message = one_line(message);
    let (style, message) = (colour.on_default().bold(), shortened(&message));
    styled(format_args!("{style}{label}:{style:#} {message}"));
}

/// A line whose style shows where stderr is a terminal and `NO_COLOR` is unset (no-color.org).
fn styled(line: impl Display) {
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// A line about progress or figures, dimmed; only for people, so only on a terminal.
pub(crate) fn note(message: &str) {
    if is_chatty() {
        let style = Style::new().dimmed();
        styled(format_args!("{style}{message}{style:#}"));
    }
}

/// A part of a text beside the results, dimmed; only for people, as a [`note`].
pub(crate) fn aside(text: &str) {
    if is_chatty() {
        let style = Style::new().dimmed();
        let _ = write!(anstream::stderr(), "{style}{text}{style:#}");
    }
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
