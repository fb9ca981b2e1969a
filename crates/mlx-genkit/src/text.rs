//! The text of a row as it grows.

use mlxgk_tokenizer_bridge::{StopTrim, StreamDecoder};

use crate::{Model, Result};

/// Decodes a row's tokens, each once, and keeps what has become certain.
#[derive(Debug)]
pub(crate) struct RowText {
    /// None where the model has no tokenizer.
    decoder: Option<StreamDecoder>,
    /// What the text begins with: the rest of a healed prompt. Empty once it was shown.
    begin: String,
    /// Where the text is to end before a stop string.
    trim: Option<StopTrim>,
    text: String,
}

impl RowText {
    /// The text that follows a prompt and begins with `begin`. It ends before the strings that are `trimmed`,
    /// and of special tokens it has those that are `shown`.
    pub(crate) fn new(
        model: &Model,
        prompt: &[u32],
        begin: &str,
        (trimmed, shown): (&[String], &[u32]),
    ) -> Result<Self> {
        let (begin, text) = (begin.to_owned(), String::new());
        let Ok(tokenizer) = model.tokenizer() else {
            return Ok(Self { decoder: None, begin, trim: None, text });
        };
        let trim = match trimmed.iter().map(String::len).max() {
            None => None,
            Some(longest) => {
                // A string may begin in the prompt; each of its bytes may be a token.
                let end = &prompt[prompt.len().saturating_sub(longest)..];
                Some(StopTrim::new(trimmed.to_vec(), &tokenizer.decode(end, true)?))
            }
        };
        let decoder = Some(tokenizer.stream(true).showing(shown.to_vec()));
        Ok(Self { decoder, begin, trim, text })
    }

    /// What can be shown with the next token; with the last one, all that is left.
    pub(crate) fn push(&mut self, token: u32, ends: bool) -> Result<String> {
        let mut piece = std::mem::take(&mut self.begin);
        if let Some(decoder) = &mut self.decoder {
            let text = decoder.push(token)?;
            match &mut self.trim {
                Some(trim) => piece += &trim.push(text),
                None => piece += text,
            }
        }
        if ends {
            piece += &self.flush()?;
        }
        self.text += &piece;
        Ok(piece)
    }

    /// What was held back.
    fn flush(&mut self) -> Result<String> {
        let Some(decoder) = &mut self.decoder else { return Ok(String::new()) };
        let text = decoder.flush()?;
        Ok(match &mut self.trim {
            Some(trim) => trim.push(text) + &trim.finish(),
            None => text.to_owned(),
        })
    }

    /// The whole text. Of a row that has not ended, what was held back belongs to it.
    pub(crate) fn finish(mut self) -> Result<String> {
        self.text += &std::mem::take(&mut self.begin);
        let rest = self.flush()?;
        Ok(self.text + &rest)
    }
}
