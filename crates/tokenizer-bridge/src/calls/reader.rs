//! From a text that grows to what of it is text and what are calls.

use serde_json::Value;

use super::{
    CLOSE, CallFormat, FUNCTION, Fault, MISTRAL, OPEN, PYTHON, THINK, THOUGHT, Tool, ToolCall,
    functions, harmony::Messages, json, pairs, tools,
};

/// A part of what a model has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Text, never empty.
    Text(String),
    /// Thoughts before the answer, never empty, where the form tells them from it ([`CallFormat::Harmony`]).
    Thought(String),
    /// A call.
    Call(ToolCall),
}

/// Tells text from calls while both are written.
///
/// What only looks like a call stays text, to the letter: broken JSON, a name that no tool has,
/// arguments that are not an object, a call that is broken off. So does what stands between `<think>` and
/// `</think>`. White space before and between calls is left out. How the text is cut into pieces makes no difference.
///
/// ```
/// use mlxgk_tokenizer_bridge::{CallFormat, CallReader, ToolCall, Written};
/// use serde_json::json;
///
/// let tools = [json!({"type": "function", "function": {"name": "tide"}})];
/// let mut reader = CallReader::new(CallFormat::Hermes, &tools);
/// assert_eq!(reader.push("One moment.\n<tool"), [Written::Text("One moment.".into())]);
/// assert_eq!(reader.push("_call>{\"name\": \"tide\", \"arguments\": {\"port\": 1}}</tool"), []);
/// let call = ToolCall { name: "tide".into(), arguments: "{\"port\": 1}".into() };
/// assert_eq!(reader.push("_call>"), [Written::Call(call)]);
/// assert_eq!(reader.finish(), []);
/// ```
#[derive(Debug, Clone)]
pub struct CallReader {
    format: CallFormat,
    tools: Vec<Tool>,
    /// gpt-oss's messages, which leave nothing else to read.
    messages: Option<Messages>,
    /// At most one call, after which nothing is said.
    only_one: bool,
    /// What has not been told yet.
    held: String,
    state: State,
    /// Whether any text was told.
    has_text: bool,
    /// Whether what was told last is a call.
    after_call: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Text,
    Thinking,
    /// In `held` a call begins at `begin`; its end is looked for from `from` on.
    Call {
        begin: usize,
        from: usize,
    },
    /// What may be calls reaches to the end; it begins at this place of `held`.
    Rest(usize),
    Over,
}

impl CallReader {
    /// Reads calls of tools, given in OpenAI's form; one without a name cannot be called.
    pub fn new(format: CallFormat, given: &[Value]) -> Self {
        Self {
            format,
            tools: tools(given),
            messages: (format == CallFormat::Harmony).then(Messages::new),
            only_one: false,
            held: String::new(),
            state: State::Text,
            has_text: false,
            after_call: false,
        }
    }

    /// Reads what follows this prompt, which may have begun with the thinking.
    #[must_use]
    pub fn after(self, prompt: &str) -> Self {
        let state = if prompt.trim_end().ends_with(THINK) { State::Thinking } else { State::Text };
        let messages = self.messages.map(|_| Messages::after(prompt));
        Self { state, messages, ..self }
    }

    /// Ends with the first call: what follows it is left out.
    #[must_use]
    pub fn only_one(self, only_one: bool) -> Self {
        Self { only_one, ..self }
    }

    /// Takes the next piece of the text and gives what has become certain.
    pub fn push(&mut self, piece: &str) -> Vec<Written> {
        if let Some(messages) = &mut self.messages {
            let written = messages.push(piece, &self.tools);
            return self.up_to_call(written);
        }
        self.held.push_str(piece);
        let mut written = Vec::new();
        while self.advance(&mut written) {}
        written
    }

    /// Gives what was held back, once nothing more comes.
    pub fn finish(&mut self) -> Vec<Written> {
        if let Some(messages) = &mut self.messages {
            let written = messages.finish();
            return self.up_to_call(written);
        }
        let (mut written, held) = (Vec::new(), std::mem::take(&mut self.held));
        match self.state {
            State::Text | State::Thinking => self.tell(&held, &mut written),
            State::Call { begin, .. } => match self.one(&held[begin + OPEN.len()..]) {
                // Without their closing tag, GLM's do not show whether all arguments are there.
                Ok(call) if self.format != CallFormat::Glm => self.call(call, &mut written),
                _ => self.tell(&held, &mut written),
            },
            State::Rest(begin) => match self.rest(&held[begin..]) {
                Some(calls) => {
                    let most = if self.only_one { 1 } else { calls.len() };
                    calls.into_iter().take(most).for_each(|it| self.call(it, &mut written));
                }
                None => self.tell(&held, &mut written),
            },
            State::Over => {}
        }
        written
    }

    /// Leaves out what follows the only call that is wanted.
    fn up_to_call(&mut self, mut written: Vec<Written>) -> Vec<Written> {
        if matches!(self.state, State::Over) {
            return Vec::new();
        }
        let call = written.iter().position(|it| matches!(it, Written::Call(_)));
        if let (true, Some(at)) = (self.only_one, call) {
            written.truncate(at + 1);
            self.state = State::Over;
        }
        written
    }

    /// Passes to the next state, if what is held leads there.
    fn advance(&mut self, written: &mut Vec<Written>) -> bool {
        match self.state {
            State::Text => self.text(written),
            State::Thinking => {
                let (end, is_over) = match self.held.find(THOUGHT) {
                    Some(at) => (at + THOUGHT.len(), true),
                    None => (self.held.len() - begun(&self.held, &[THOUGHT]), false),
                };
                let rest = self.held.split_off(end);
                let thought = std::mem::replace(&mut self.held, rest);
                self.tell(&thought, written);
                if is_over {
                    self.state = State::Text;
                }
                is_over
            }
            State::Call { begin, from } => self.end_of_call(begin, from, written),
            State::Rest(_) => false,
            State::Over => {
                self.held.clear();
                false
            }
        }
    }

    /// What is certainly text is told, up to where something else begins or may begin.
    fn text(&mut self, written: &mut Vec<Written>) -> bool {
        let openings = self.openings();
        let found = openings.iter().filter_map(|it| Some((self.held.find(it)?, *it))).min();
        // Llama's calls begin with the text, or are none.
        let bare = self.held.len() - self.held.trim_start().len();
        let is_bare = self.format == CallFormat::Llama && !self.has_text;
        if is_bare && self.held[bare..].starts_with('{') {
            self.state = State::Rest(bare);
            return true;
        }
        let Some((at, opening)) = found else {
            let end = self.held.len() - begun(&self.held, openings);
            let end = self.held[..end].trim_end().len();
            let rest = self.held.split_off(end);
            let text = std::mem::replace(&mut self.held, rest);
            self.tell(&text, written);
            return false;
        };
        let end = match opening {
            THINK => at + THINK.len(),
            _ => self.held[..at].trim_end().len(),
        };
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        self.tell(&text, written);
        // The white space before it is held, too, in case that it is not a call.
        let begin = at - end.min(at);
        self.state = match opening {
            THINK => State::Thinking,
            OPEN => State::Call { begin, from: begin + OPEN.len() },
            _ => State::Rest(begin),
        };
        true
    }

    /// Looks for the end of a call. A closing tag within its arguments is none.
    fn end_of_call(&mut self, begin: usize, from: usize, written: &mut Vec<Written>) -> bool {
        let Some(found) = self.held[from..].find(CLOSE).map(|it| from + it) else {
            let from = self.held.len() - begun(&self.held, &[CLOSE]);
            self.state = State::Call { begin, from: from.max(begin + OPEN.len()) };
            return false;
        };
        let end = found + CLOSE.len();
        let read = self.one(&self.held[begin + OPEN.len()..found]);
        if read == Err(Fault::Unfinished) {
            self.state = State::Call { begin, from: end };
            return true;
        }
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        self.state = State::Text;
        match read {
            Ok(call) => self.call(call, written),
            _ => self.tell(&text, written),
        }
        true
    }

    /// What stands between two tags.
    fn one(&self, body: &str) -> Result<ToolCall, Fault> {
        match self.format {
            CallFormat::Glm => pairs::call(body, &self.tools),
            _ if body.trim_start().starts_with(FUNCTION) => functions::call(body, &self.tools),
            _ => json::call(body, &self.tools),
        }
    }

    /// What reaches to the end.
    fn rest(&self, text: &str) -> Option<Vec<ToolCall>> {
        match self.format {
            CallFormat::Llama => json::llama(text, &self.tools),
            _ => json::mistral(text, &self.tools),
        }
    }

    /// What text gives way to.
    fn openings(&self) -> &'static [&'static str] {
        match self.format {
            CallFormat::Hermes | CallFormat::Functions | CallFormat::Glm => &[OPEN, THINK],
            CallFormat::Mistral | CallFormat::MistralArgs => &[MISTRAL, THINK],
            CallFormat::Llama => &[PYTHON, THINK],
            CallFormat::Harmony => &[],
        }
    }

    fn call(&mut self, call: ToolCall, written: &mut Vec<Written>) {
        self.after_call = true;
        if self.only_one {
            self.state = State::Over;
        }
        written.push(Written::Call(call));
    }

    fn tell(&mut self, text: &str, written: &mut Vec<Written>) {
        let is_first = self.after_call && !self.has_text;
        let text = if is_first { text.trim_start() } else { text };
        if text.is_empty() || self.after_call && text.trim().is_empty() {
            return;
        }
        (self.has_text, self.after_call) = (true, false);
        tell(Written::Text(text.to_owned()), written);
    }
}

/// Adds a part of a text, unless it is empty, to what precedes it.
pub(super) fn tell(part: Written, written: &mut Vec<Written>) {
    match (part, written.last_mut()) {
        (Written::Text(part), Some(Written::Text(before)))
        | (Written::Thought(part), Some(Written::Thought(before))) => before.push_str(&part),
        (Written::Text(part) | Written::Thought(part), _) if part.is_empty() => {}
        (part, _) => written.push(part),
    }
}

/// How many bytes at the end of a text may be the beginning of one of these words.
pub(super) fn begun(text: &str, words: &[&str]) -> usize {
    let begins = |len: &usize| {
        let end = text.len().checked_sub(*len).and_then(|at| text.get(at..));
        end.is_some_and(|end| words.iter().any(|it| it.starts_with(end)))
    };
    let longest = words.iter().map(|it| it.len()).max().unwrap_or(0);
    (1..longest).rev().find(begins).unwrap_or(0)
}
