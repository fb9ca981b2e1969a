//! Where the messages of a conversation come from: a terminal with line editing and history, or a pipe.
//!
//! A message is a line. It continues in the next one after a backslash at its end and between two `"""`;
//! lines that are pasted into a terminal together are one message.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, ErrorKind, IsTerminal, StdinLock, stdin, stdout},
    path::{Path, PathBuf},
};

use rustyline::{
    Behavior, Config, Editor, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use crate::{
    failure::{Failure, Result},
    terminal,
};

/// Messages that are remembered from one conversation to the next.
const HISTORY: usize = 1000;

/// What encloses a message of several lines.
const FENCE: &str = "\"\"\"";

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A message or a command.
    Message(String),
    /// Bytes that are not text.
    NotUtf8,
    /// Ctrl-C: what was begun is dropped.
    Dropped,
    /// Ctrl-D, or the end of the pipe.
    End,
}

/// The source of the messages.
pub(crate) enum ChatInput {
    Terminal { editor: Box<Editor<Multiline, FileHistory>>, history: Option<PathBuf> },
    Pipe(StdinLock<'static>),
}

impl ChatInput {
    /// Reads from the terminal where stdin is one; with `keeps_history`, the messages of earlier
    /// conversations can be found again.
    pub(crate) fn open(keeps_history: bool) -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self::Pipe(stdin().lock()));
        }
        let failed =
            |e: ReadlineError| Failure::other(format_args!("the terminal cannot be read: {e}"));
        // Prompts must not get into a redirected stdout.
        let behavior = if stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().behavior(behavior).auto_add_history(true);
        let config = config.max_history_size(HISTORY).map_err(failed)?.build();
        let mut editor = Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(Multiline));
        let history = if keeps_history { history_file() } else { None };
        if let Some(path) = &history {
            // The first conversation has none.
            let _ = editor.load_history(path);
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    /// The next message.
    pub(crate) fn next(&mut self) -> Result<Input> {
        match self {
            Self::Terminal { editor, history } => {
                let input = typed(editor.readline("> "))?;
                if let (Input::Message(_), Some(path)) = (&input, &history)
                    && let Err(e) = save(editor, path)
                {
                    terminal::warning(&format!(
                        "the messages are not kept in {}: {e}",
                        path.display()
                    ));
                    *history = None;
                }
                Ok(input)
            }
            Self::Pipe(input) => piped(input),
        }
    }
}

fn typed(line: Result<String, ReadlineError>) -> Result<Input> {
    match line {
        Ok(line) => Ok(Input::Message(message(&line))),
        Err(ReadlineError::Eof) => Ok(Input::End),
        Err(ReadlineError::Interrupted) => Ok(Input::Dropped),
        Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::InvalidData => Ok(Input::NotUtf8),
        Err(e) => Err(Failure::other(format_args!("the message cannot be read: {e}"))),
    }
}

fn save(editor: &mut Editor<Multiline, FileHistory>, path: &Path) -> Result<(), ReadlineError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    editor.save_history(path)
}

/// `mlxgk/chat_history` among the files of the user's state (XDG).
fn history_file() -> Option<PathBuf> {
    let of = |name: &str| env::var_os(name).filter(|it| !it.is_empty());
    let in_home = |home: OsString| PathBuf::from(home).join(".local/state");
    let state = of("XDG_STATE_HOME").map(PathBuf::from).or_else(|| of("HOME").map(in_home))?;
    Some(state.join("mlxgk/chat_history"))
}

/// The next message of a pipe.
fn piped(input: &mut impl BufRead) -> Result<Input> {
    let mut bytes = Vec::new();
    loop {
        let read = input.read_until(b'\n', &mut bytes);
        let read =
            read.map_err(|e| Failure::other(format_args!("the message cannot be read: {e}")))?;
        let text = std::str::from_utf8(&bytes).map(|it| it.trim_end_matches(['\r', '\n']));
        match text {
            Ok("") if read == 0 => return Ok(Input::End),
            Ok(text) if read == 0 || !is_open(text) => return Ok(Input::Message(message(text))),
            Ok(_) => {}
            Err(_) => return Ok(Input::NotUtf8),
        }
    }
}

/// Whether a message continues in the next line.
fn is_open(text: &str) -> bool {
    match text.trim_start().strip_prefix(FENCE) {
        Some(inside) => !inside.trim_end().ends_with(FENCE),
        None => text.chars().rev().take_while(|it| *it == '\\').count() % 2 == 1,
    }
}

/// The message without what joined its lines.
fn message(text: &str) -> String {
    let text = text.trim();
    match text.strip_prefix(FENCE) {
        Some(inside) => inside.strip_suffix(FENCE).unwrap_or(inside).trim().to_owned(),
        None => text.replace("\\\r\n", "\n").replace("\\\n", "\n"),
    }
}

/// Lets Enter begin a new line where the message continues.
pub(crate) struct Multiline;

impl Completer for Multiline {
    type Candidate = String;
}

impl Hinter for Multiline {
    type Hint = String;
}

impl Highlighter for Multiline {}

impl Helper for Multiline {}

impl Validator for Multiline {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_open(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut input: &[u8]) -> Vec<Input> {
        let mut found = Vec::new();
        loop {
            match piped(&mut input).unwrap() {
                Input::End => return found,
                it => found.push(it),
            }
        }
    }

    fn said(text: &str) -> Input {
        Input::Message(text.to_owned())
    }

    #[test]
    fn a_message_is_a_line_or_several() {
        assert_eq!(all(b"Hello!\r\n\n  /reset \n"), [said("Hello!"), said(""), said("/reset")]);
        assert_eq!(all(b"one\\\ntwo\\\r\nthree\nfour"), [said("one\ntwo\nthree"), said("four")]);
        assert_eq!(
            all(b"\"\"\"\none\n\ntwo\n\"\"\"\nthree\n"),
            [said("one\n\ntwo"), said("three")]
        );
        assert_eq!(all(b"\"\"\"one\"\"\"\n"), [said("one")]);
        assert_eq!(
            all(b"C:\\\\\n\"\"\"open\nto the end"),
            [said("C:\\\\"), said("open\nto the end")]
        );
        assert_eq!(all(b"caf\xe9\nHello!\n"), [Input::NotUtf8, said("Hello!")]);
    }
}
