//! From turns to tokens: raw text, or the model's chat template, written piece by piece.
//!
//! A piece's text is encoded by itself, so that a turn has the same tokens whatever stands before it, and a
//! text that grows turn by turn has the tokens of one that is read at once.

use std::ops::Range;

use mlx_genkit::{
    Message, Model, Result,
    tokenizer_bridge::{RenderOptions, Tokenizer},
};

use crate::example::refused;

/// How turns become one text.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model};
/// use mlxgk_isolation::TurnFormat;
///
/// // The bundled model has a chat template.
/// let format = TurnFormat::of(&Model::bundled(ComputeDtype::Auto)?);
/// assert_eq!((format, format.as_str()), (TurnFormat::Chat, "chat"));
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TurnFormat {
    /// As paragraphs, behind the tokenizer's begin token where it has one.
    Raw,
    /// As messages of the model's chat template. Neighbouring turns of one role are paragraphs of one message,
    /// because many templates refuse two in a row.
    Chat,
}

impl TurnFormat {
    /// The chat template where the model has one.
    pub fn of(model: &Model) -> Self {
        if model.has_chat_template() { Self::Chat } else { Self::Raw }
    }

    /// Its name: `raw` or `chat`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Chat => "chat",
        }
    }
}

/// What a stretch of tokens says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// What all clusters are told first.
    System,
    /// The instruction of the prompted condition.
    Instruction,
    /// A turn, by its place among the turns.
    Turn(usize),
    /// The model's answer to a turn.
    Answer(usize),
    /// A cluster's output, handed on.
    Message(usize),
    /// What the output is asked for with.
    Prompt,
}

/// The tokens of a text, what they say, and how the text goes on.
#[derive(Debug, Clone)]
pub(crate) struct Transcript<'a> {
    model: &'a Model,
    format: TurnFormat,
    pub(crate) tokens: Vec<u32>,
    /// Without the words of the template and the breaks between paragraphs.
    pub(crate) segments: Vec<(Source, Range<usize>)>,
    /// Of the messages so far.
    roles: Vec<String>,
}

impl<'a> Transcript<'a> {
    pub(crate) fn new(model: &'a Model, format: TurnFormat) -> Self {
        Self { model, format, tokens: Vec::new(), segments: Vec::new(), roles: Vec::new() }
    }

    /// Writes a paragraph, with a mark before it that is not counted as part of it.
    pub(crate) fn write(
        &mut self,
        source: Source,
        role: &str,
        mark: &str,
        text: &str,
    ) -> Result<()> {
        let tokenizer = self.model.tokenizer()?;
        let goes_on = self.roles.last().is_some_and(|it| it == role);
        match self.format {
            TurnFormat::Raw if self.tokens.is_empty() => {
                self.tokens = begin_tokens(tokenizer)?;
            }
            TurnFormat::Chat if !goes_on => {
                let glue = self.glue(Some(role))?;
                self.tokens.extend(tokenizer.encode(&glue, false)?);
                self.roles.push(role.to_owned());
            }
            _ => self.tokens.extend(piece(tokenizer, "\n\n")?),
        }
        if !mark.is_empty() {
            self.tokens.extend(piece(tokenizer, mark)?);
        }
        let start = self.tokens.len();
        self.tokens.extend(piece(tokenizer, text)?);
        self.segments.push((source, start..self.tokens.len()));
        Ok(())
    }

    /// Writes what the model's answer stands behind.
    pub(crate) fn begin_answer(&mut self) -> Result<()> {
        let tokenizer = self.model.tokenizer()?;
        let tokens = match self.format {
            TurnFormat::Raw => piece(tokenizer, "\n")?,
            TurnFormat::Chat => tokenizer.encode(&self.glue(None)?, false)?,
        };
        self.tokens.extend(tokens);
        Ok(())
    }

    /// Keeps the model's answer to a turn, without the token that ended it.
    pub(crate) fn answered(&mut self, turn: usize, tokens: &[u32]) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.segments.push((Source::Answer(turn), start..self.tokens.len()));
        if self.format == TurnFormat::Chat {
            self.roles.push("assistant".to_owned());
        }
    }

    /// What the template writes between the last message and one of the role, or the model's answer.
    fn glue(&self, next: Option<&str>) -> Result<String> {
        let content = |at: usize| format!("CONTENT_{at}_END");
        let roles = self.roles.iter().map(String::as_str).chain(next);
        let message = |(at, role): (usize, &str)| Message::new(role, content(at));
        let messages: Vec<Message> = roles.enumerate().map(message).collect();
        let options = RenderOptions::default().add_generation_prompt(next.is_none());
        let text = self.model.chat_template()?.render(&messages, &options)?;
        let start = match self.roles.len() {
            0 => Some(0),
            count => text.find(&content(count - 1)).map(|it| it + content(count - 1).len()),
        };
        let end = match next {
            None => Some(text.len()),
            Some(_) => text.find(&content(self.roles.len())),
        };
        match (start, end) {
            (Some(start), Some(end)) if start <= end => Ok(text[start..end].to_owned()),
            _ => Err(refused(format!(
                "the chat template of {} does not write messages one behind the other; use raw turns",
                self.model.name()
            ))),
        }
    }
}

/// The tokens of a text that goes on. Special tokens are not seen in it, as long as it can be spelt without.
fn piece(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    match tokenizer.encode_continuation(text) {
        Some(tokens) => Ok(tokens),
        None => Ok(tokenizer.encode(text, false)?),
    }
}

/// The tokens of a text at the beginning of an answer.
pub(crate) fn term_tokens(model: &Model, term: &str) -> Result<Vec<u32>> {
    piece(model.tokenizer()?, term)
}

/// What the tokenizer puts before a text.
fn begin_tokens(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let (with, without) = (tokenizer.encode("a", true)?, tokenizer.encode("a", false)?);
    let at = with.windows(without.len().max(1)).position(|it| it == without);
    Ok(with[..at.unwrap_or(0)].to_vec())
}
