//! An answer as a conversation shows and keeps it.

use mlx_genkit::{
    Model,
    tokenizer_bridge::{CallFormat, CallReader, Written},
};

use crate::{failure::Result, terminal};

/// An answer that is shown as it is made. gpt-oss writes thoughts and the answer itself as messages of one text:
/// there, thoughts are shown beside it and not kept, as its chat template leaves them out of later turns.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What tells messages apart; `None` where all of the text is the answer.
    reader: Option<CallReader>,
    text: String,
    /// Bytes of the model's text that were taken.
    taken: usize,
    /// Whether thoughts were shown last.
    in_thought: bool,
}

impl Answer {
    /// The answer of a model to this prompt, still empty; and the special tokens that its texts are to have.
    pub(crate) fn new(model: &Model, prompt: &str) -> Result<(Self, Vec<u32>)> {
        let form = model.chat_template()?.call_format().filter(|it| *it == CallFormat::Harmony);
        let reader = form.map(|it| CallReader::new(it, &[]).after(prompt));
        let tokenizer = model.tokenizer()?;
        let marks = form.map_or_else(Vec::new, |it| it.special_marks(tokenizer));
        let shown = marks.into_iter().map(|it| it.1).collect();
        Ok((Self { reader, text: String::new(), taken: 0, in_thought: false }, shown))
    }

    /// Shows the next piece of the text.
    pub(crate) fn piece(&mut self, piece: &str) -> Result<()> {
        self.taken += piece.len();
        let written = match &mut self.reader {
            Some(reader) => reader.push(piece),
            None => vec![Written::Text(piece.to_owned())],
        };
        written.iter().try_for_each(|it| self.show(it))
    }

    /// Shows what no piece has shown of the `whole` text. Returns the answer.
    pub(crate) fn finish(mut self, whole: &str) -> Result<String> {
        self.piece(whole.get(self.taken..).unwrap_or_default())?;
        let written = self.reader.as_mut().map(CallReader::finish).unwrap_or_default();
        written.iter().try_for_each(|it| self.show(it))?;
        if self.in_thought {
            terminal::aside("\n");
        }
        Ok(self.text)
    }

    fn show(&mut self, written: &Written) -> Result<()> {
        let is_thought = matches!(written, Written::Thought(_));
        if self.in_thought && !is_thought {
            terminal::aside("\n\n");
        }
        self.in_thought = is_thought;
        match written {
            Written::Thought(thought) => terminal::aside(thought),
            Written::Text(text) => {
                terminal::piece(text)?;
                self.text += text;
            }
            // No tools were named to the reader.
            Written::Call(_) => {}
        }
        Ok(())
    }
}
