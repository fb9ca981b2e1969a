//! gpt-oss's messages, of which an answer has several: thoughts, calls, and what is meant for the reader
//! ([OpenAI's description](https://developers.openai.com/cookbook/articles/openai-harmony)).
//!
//! `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`

use super::{
    Tool, ToolCall, Written, json,
    reader::{begun, tell},
};

pub(super) const START: &str = "<|start|>";
pub(super) const CHANNEL: &str = "<|channel|>";
pub(super) const CONSTRAIN: &str = "<|constrain|>";
pub(super) const MESSAGE: &str = "<|message|>";
pub(super) const END: &str = "<|end|>";
pub(super) const CALL: &str = "<|call|>";
pub(super) const RETURN: &str = "<|return|>";

/// All words of the form.
pub(super) const MARKS: [&str; 7] = [START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN];

/// What ends a message. The next one's beginning does so, too.
const ENDS: [&str; 4] = [END, CALL, RETURN, START];
/// What a message's head begins with; after a prompt its role is known.
const HEADS: [&str; 4] = [START, CHANNEL, RECIPIENT, MESSAGE];
const RECIPIENT: &str = " to=";
const FUNCTIONS: &str = "functions.";

/// Tells messages apart while they are written.
#[derive(Debug, Clone)]
pub(super) struct Messages {
    /// What has not been told yet.
    held: String,
    part: Part,
}

/// The part of a message that `held` begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Head,
    Thought,
    Text,
    /// Arguments for this tool, after a head of this length.
    Call(String, usize),
}

impl Messages {
    pub(super) fn new() -> Self {
        Self { held: String::new(), part: Part::Head }
    }

    /// Reads what follows a prompt, in which a message may have begun.
    pub(super) fn after(prompt: &str) -> Self {
        let mut messages = Self::new();
        if let Some(at) = prompt.rfind(START) {
            messages.push(&prompt[at..], &[]);
            messages.held.clear();
        }
        messages
    }

    /// Takes the next piece of the text and gives what has become certain.
    pub(super) fn push(&mut self, piece: &str, tools: &[Tool]) -> Vec<Written> {
        self.held.push_str(piece);
        let mut written = Vec::new();
        while self.advance(tools, &mut written) {}
        written
    }

    /// Gives what was held back, once nothing more comes. A head that is broken off is text.
    pub(super) fn finish(&mut self) -> Vec<Written> {
        let mut written = Vec::new();
        let held = std::mem::take(&mut self.held);
        match &self.part {
            // An end token may take the last word's place.
            Part::Call(name, head) => call(name, &held, &held[*head..], &mut written),
            Part::Head | Part::Thought | Part::Text => self.body(held, &mut written),
        }
        written
    }

    /// Passes to the next part, if what is held leads there.
    fn advance(&mut self, tools: &[Tool], written: &mut Vec<Written>) -> bool {
        if self.part == Part::Head {
            return self.head(tools);
        }
        let begin = match self.part {
            Part::Call(_, head) => head,
            _ => 0,
        };
        let ends = ENDS.iter().filter_map(|it| Some((self.held[begin..].find(it)? + begin, *it)));
        let Some((at, end)) = ends.min() else {
            if !matches!(self.part, Part::Call(..)) {
                let certain = self.held.len() - begun(&self.held, &ENDS);
                let rest = self.held.split_off(certain);
                let body = std::mem::replace(&mut self.held, rest);
                self.body(body, written);
            }
            return false;
        };
        // The next head has the word for its beginning.
        let after = if end == START { at } else { at + end.len() };
        let rest = self.held.split_off(after);
        let mut body = std::mem::replace(&mut self.held, rest);
        match &self.part {
            Part::Call(name, head) => call(name, &body, &body[*head..at], written),
            _ => {
                body.truncate(at);
                self.body(body, written);
            }
        }
        self.part = Part::Head;
        true
    }

    fn body(&self, body: String, written: &mut Vec<Written>) {
        let form = if self.part == Part::Thought { Written::Thought } else { Written::Text };
        tell(form(body), written);
    }

    /// Reads a head: role, recipient and channel, up to where the message begins.
    fn head(&mut self, tools: &[Tool]) -> bool {
        let begins = |it: &&str| self.held.starts_with(*it) || it.starts_with(&*self.held);
        if !HEADS.iter().any(begins) {
            // A text without one.
            self.part = Part::Text;
            return true;
        }
        if !self.held.contains(MESSAGE) {
            return false;
        }
        let role = [CHANNEL, RECIPIENT, MESSAGE].iter().filter_map(|it| self.held.find(it)).min();
        self.held.drain(..role.unwrap_or(0));
        let at = self.held.find(MESSAGE).unwrap_or(0);
        let head = &self.held[..at];
        let word = |after: &str| {
            let (_, rest) = head.split_once(after)?;
            let end = rest.find(|it: char| it.is_whitespace() || it == '<').unwrap_or(rest.len());
            Some(&rest[..end])
        };
        let length = at + MESSAGE.len();
        self.part = match (word(RECIPIENT), word(CHANNEL)) {
            (Some(recipient), _) => {
                let name = recipient.strip_prefix(FUNCTIONS);
                match name.filter(|name| tools.iter().any(|it| it.name == *name)) {
                    Some(name) => Part::Call(name.to_owned(), length),
                    // It stays as it is, head and all.
                    None => Part::Text,
                }
            }
            (None, channel) => {
                let part = if channel == Some("analysis") { Part::Thought } else { Part::Text };
                self.held.drain(..length);
                part
            }
        };
        true
    }
}

/// Adds a call with these arguments; all of the message as text, where they are none.
fn call(name: &str, message: &str, arguments: &str, written: &mut Vec<Written>) {
    match json::checked(arguments) {
        Some(arguments) => {
            written.push(Written::Call(ToolCall { name: name.to_owned(), arguments }));
        }
        None => tell(Written::Text(message.to_owned()), written),
    }
}
