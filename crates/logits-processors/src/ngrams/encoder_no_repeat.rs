//! No n-gram of the source text.

use super::continuations;
use crate::mask::in_vocabulary;
use crate::source::Source;
use crate::{Context, Error, LogitsProcessor, Result, Stage};

/// Bans every token that would complete an n-gram of the source text
/// (`EncoderNoRepeatNGramLogitsProcessor`).
///
/// The source is the encoder's input, or the padded prompt where there is no encoder. What was
/// generated may repeat itself.
///
/// ```
/// use mlxgk_logits_processors::{Context, EncoderNoRepeatNGram, LogitsProcessor};
///
/// let mut scores = [0.0; 4];
/// let prompt_and_generated = [0, 1, 2, 3, 3, 0, 1];
/// let context = Context::new(&prompt_and_generated, 3);
/// EncoderNoRepeatNGram::new(3)?.process(&context, &mut scores)?;
/// assert_eq!(scores, [0.0, 0.0, f32::NEG_INFINITY, 0.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderNoRepeatNGram {
    ngram_size: usize,
    source: Source,
}

impl EncoderNoRepeatNGram {
    /// A ban on `ngram_size` tokens in a row from the prompt.
    ///
    /// # Errors
    /// When `ngram_size` is 0.
    pub fn new(ngram_size: usize) -> Result<Self> {
        if ngram_size == 0 {
            return Err(Error::parameter("encoder_no_repeat_ngram_size", "above 0", ngram_size));
        }
        Ok(Self { ngram_size, source: Source::Prompt })
    }

    /// The same for the input of an encoder: one list of ids per batch item, found by
    /// [`Context::row`].
    pub fn for_encoder(self, encoder_input_ids: Vec<Vec<u32>>) -> Self {
        Self { source: Source::Encoder(encoder_input_ids), ..self }
    }
}

impl LogitsProcessor for EncoderNoRepeatNGram {
    fn name(&self) -> &'static str {
        "EncoderNoRepeatNGramLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::EncoderNoRepeatNGram
    }

    /// # Errors
    /// When a token to ban is beyond the vocabulary, or the encoder read nothing for the row.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let source = self.source.tokens(context)?;
        if let Some(start) = context.tokens.len().checked_sub(self.ngram_size - 1) {
            for token in continuations(source, &context.tokens[start..]) {
                in_vocabulary(&[token], scores.len(), "encoder_input_ids")?;
                scores[token as usize] = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }
}
