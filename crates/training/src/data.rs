//! Data as lines of JSON: texts, prompts with completions, conversations, preferences.
//!
//! What is predicted follows from the kind of row. Of a text it is everything; of a prompt with a
//! completion, the completion; of a conversation, what the assistant says, up to and including the token
//! that ends a turn, as the chat template writes it.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
};

use mlxgk_steering::open_file;
use mlxgk_tokenizer_bridge::{ChatTemplate, Message, RenderOptions, Tokenizer};
use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Example, IGNORE_INDEX, Result};

/// The longest file of data: all of its tokens are held.
const LONGEST: u64 = 1 << 30;

/// The longest row, in bytes: no context has room for what it holds.
const LONGEST_ROW: u64 = 16 << 20;

/// Turns rows of data into tokens and labels, with a model's tokenizer and chat template.
///
/// ```
/// use mlxgk_tokenizer_bridge::{Files, Tokenizer};
/// use mlxgk_training::{Encoder, Row};
///
/// let json = r#"{"model": {"type": "WordLevel", "vocab": {"hm": 0, "sea": 1, "</s>": 2},
///                "unk_token": "hm"}, "pre_tokenizer": {"type": "Whitespace"}}"#;
/// let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
/// let tokenizer = Tokenizer::from_files(&files)?;
/// let encoder = Encoder { tokenizer: &tokenizer, template: None, ends: &[2], context: 64 };
///
/// let data = tempfile::NamedTempFile::new()?;
/// std::fs::write(data.path(), r#"{"prompt": "hm", "completion": " sea sea"}"#)?;
/// let rows = encoder.read(data.path())?;
/// assert!(matches!(&rows[..], [Row::Example(it)] if it.tokens == [0, 1, 1, 2]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its chat template, for conversations.
    pub template: Option<&'a ChatTemplate>,
    /// The tokens that end a text or a turn; the first is appended to texts and completions.
    pub ends: &'a [u32],
    /// The longest sequence.
    pub context: usize,
}

/// One row of data.
///
/// ```
/// use mlxgk_training::{Example, Row};
///
/// let answer = |token| Example::completion(&[5, 17], &[token, 2]);
/// let pair = Row::Preference { chosen: answer(8), rejected: answer(9) };
/// let rows = [Row::Example(answer(300)), pair];
/// let pairs = rows.iter().filter(|it| matches!(it, Row::Preference { .. }));
/// assert_eq!(pairs.count(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Row {
    /// A sequence to learn.
    Example(Example),
    /// Two answers to one prompt.
    Preference {
        /// The better one.
        chosen: Example,
        /// The worse one.
        rejected: Example,
    },
}

impl Encoder<'_> {
    /// Reads a file of rows, one JSON object per line; empty lines are passed over.
    ///
    /// | row | |
    /// |---|---|
    /// | `{"text": …}` | a text |
    /// | `{"prompt": …, "completion": …}` | texts |
    /// | `{"messages": […]}` | a conversation in which the assistant speaks |
    /// | `{"prompt": …, "chosen": …, "rejected": …}` | texts, or lists of messages |
    ///
    /// # Errors
    /// When the file cannot be read, has more than 1 GiB or no row, or a row is wrong: of more than 16 MiB, not
    /// JSON, of no known kind, empty, without a completion, or longer than the context. The message names
    /// file and line.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<Row>> {
        let path = path.as_ref();
        let name = path.display();
        let wrong = |what: String| Error::new(ErrorKind::File, format!("{name}: {what}"));
        let unreadable = |e: std::io::Error| wrong(format!("cannot be read: {e}"));
        let mut file = BufReader::new(open_file(path, LONGEST).map_err(unreadable)?);
        let (mut rows, mut line, mut number) = (Vec::new(), Vec::new(), 0);
        loop {
            line.clear();
            number += 1;
            let mut part = file.by_ref().take(LONGEST_ROW + 1);
            if part.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
                break;
            }
            let about = |what: String| Error::data(format!("{name}:{number}: {what}"));
            if line.len() as u64 > LONGEST_ROW {
                let most = LONGEST_ROW >> 20;
                return Err(about(format!(
                    "has more than {most} MiB, and at most {most} are read"
                )));
            }
            let line = std::str::from_utf8(&line)
                .map_err(|e| wrong(format!("is not UTF-8 in line {number}: {e}")))?;
            if line.trim().is_empty() {
                continue;
            }
            let value: Value =
                serde_json::from_str(line).map_err(|e| about(format!("is not valid JSON: {e}")))?;
            let Value::Object(row) = value else {
                return Err(about(format!("is {value}, expected an object")));
            };
            rows.push(self.row(&row).map_err(about)?);
        }
        if rows.is_empty() {
            return Err(Error::data(format!("{name}: has no row of data")));
        }
        let is_preference = |row: &Row| matches!(row, Row::Preference { .. });
        if rows.iter().any(is_preference) && !rows.iter().all(is_preference) {
            return Err(Error::data(format!("{name}: mixes preferences with other rows")));
        }
        Ok(rows)
    }

    /// One row; an error says what is wrong with it.
    fn row(&self, row: &Map<String, Value>) -> Result<Row, String> {
        if row.contains_key("chosen") || row.contains_key("rejected") {
            let side = |name: &str| -> Result<Example, String> {
                let answer = required(row, name)?;
                let prompt = required(row, "prompt")?;
                match answer {
                    Value::String(answer) => self.completion(text(prompt, "prompt")?, answer, name),
                    _ => {
                        let mut messages = messages(prompt, "prompt")?;
                        let answers = self::messages(answer, name)?;
                        let before = messages.len();
                        messages.extend(answers);
                        self.conversation(&messages, before)
                    }
                }
            };
            return Ok(Row::Preference { chosen: side("chosen")?, rejected: side("rejected")? });
        }
        if let Some(value) = row.get("messages") {
            return Ok(Row::Example(self.conversation(&messages(value, "messages")?, 0)?));
        }
        if row.contains_key("prompt") || row.contains_key("completion") {
            let prompt = text(required(row, "prompt")?, "prompt")?;
            let completion = text(required(row, "completion")?, "completion")?;
            return Ok(Row::Example(self.completion(prompt, completion, "completion")?));
        }
        let Some(value) = row.get("text") else {
            let found: Vec<&str> = row.keys().map(String::as_str).collect();
            return Err(format!(
                "has the fields {found:?}; expected text, prompt and completion, messages, or prompt with \
                 chosen and rejected"
            ));
        };
        let mut tokens = self.encode(text(value, "text")?, true)?;
        self.end(&mut tokens);
        Ok(Row::Example(self.checked(Example::text(tokens))?))
    }

    /// A prompt and what follows, tokenized as one text: a token that reaches over the border is predicted.
    fn completion(&self, prompt: &str, completion: &str, name: &str) -> Result<Example, String> {
        if completion.is_empty() {
            return Err(format!("`{name}` is empty"));
        }
        let before = self.encode(prompt, true)?;
        let mut tokens = self.encode(&format!("{prompt}{completion}"), true)?;
        self.end(&mut tokens);
        let shared = before.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        self.checked(Example::completion(&tokens[..shared], &tokens[shared..]))
    }

    /// A conversation of which the assistant's messages from `from` on are predicted.
    fn conversation(&self, messages: &[Message], from: usize) -> Result<Example, String> {
        let Some(template) = self.template else {
            return Err("is a conversation, but the model has no chat template".to_owned());
        };
        let render = |messages: &[Message], prompt: bool| {
            let options = RenderOptions::default().add_generation_prompt(prompt);
            template.render(messages, &options).map_err(|e| e.to_string())
        };
        let full = render(messages, false)?;
        // The template wrote the special tokens itself.
        let tokens = self.encode(&full, false)?;
        let mut labels = vec![IGNORE_INDEX; tokens.len()];
        let is_answer = |index: &usize| messages[*index].role() == Some("assistant");
        let mut answers = 0;
        for index in (from..messages.len()).filter(is_answer) {
            if index == 0 {
                return Err("begins with the assistant instead of the user".to_owned());
            }
            let before = render(&messages[..index], true)?;
            if !full.starts_with(&before) {
                return Err(format!(
                    "the chat template writes what comes before message {index} otherwise once it is \
                     answered; give each answer a row of its own"
                ));
            }
            let before = self.encode(&before, false)?;
            let begin = before.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
            let rest = &tokens[begin..];
            let count =
                rest.iter().position(|it| self.ends.contains(it)).map_or(rest.len(), |it| it + 1);
            for place in begin..begin + count {
                labels[place] = tokens[place] as i32;
            }
            answers += 1;
        }
        if answers == 0 {
            return Err("has no message of the assistant to learn from".to_owned());
        }
        self.checked(Example { tokens, labels })
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, String> {
        self.tokenizer.encode(text, special).map_err(|e| e.to_string())
    }

    /// Ends a text, where it does not end by itself.
    fn end(&self, tokens: &mut Vec<u32>) {
        if let (Some(&end), false) = (self.ends.first(), self.ends_in(tokens)) {
            tokens.push(end);
        }
    }

    fn ends_in(&self, tokens: &[u32]) -> bool {
        tokens.last().is_some_and(|it| self.ends.contains(it))
    }

    fn checked(&self, example: Example) -> Result<Example, String> {
        let (count, context) = (example.tokens.len(), self.context);
        if count > context {
            return Err(format!("has {count} tokens, more than the {context} of the context"));
        }
        if example.supervised() == 0 {
            return Err("leaves no token to be predicted".to_owned());
        }
        Ok(example)
    }
}

fn required<'v>(row: &'v Map<String, Value>, name: &str) -> Result<&'v Value, String> {
    row.get(name).ok_or_else(|| format!("has no `{name}`"))
}

fn text<'v>(value: &'v Value, name: &str) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| format!("`{name}` is {value}, expected a text"))
}

fn messages(value: &Value, name: &str) -> Result<Vec<Message>, String> {
    let wrong = |e: serde_json::Error| format!("`{name}` is not a list of messages: {e}");
    let messages: Vec<Message> = serde_json::from_value(value.clone()).map_err(wrong)?;
    if messages.is_empty() {
        return Err(format!("`{name}` is empty"));
    }
    Ok(messages)
}

/// Sequences joined into rows of at most `width` tokens, in their order: no token is spent on padding. A
/// sequence sees those before it in its row; its first token is not predicted from them.
pub fn pack(examples: &[Example], width: usize) -> Vec<Example> {
    let mut packed: Vec<Example> = Vec::new();
    for example in examples {
        let mut labels = example.labels.clone();
        labels[..1].fill(IGNORE_INDEX);
        match packed.last_mut() {
            Some(row) if row.tokens.len() + example.tokens.len() <= width => {
                row.tokens.extend(&example.tokens);
                row.labels.extend(labels);
            }
            _ => packed.push(Example { tokens: example.tokens.clone(), labels }),
        }
    }
    packed
}
