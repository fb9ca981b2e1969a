//! The inverse repetition penalty, for the words of the source text.

use super::{penalised, rewrite_once};
use crate::error::positive;
use crate::mask::in_vocabulary;
use crate::source::Source;
use crate::{Context, LogitsProcessor, Result, Stage};

/// Makes the tokens of the source text more likely (`EncoderRepetitionPenaltyLogitsProcessor`).
///
/// Against invention in summaries and the like: above 1, each token of the encoder's input, or of
/// the prompt where there is no encoder, has its score divided (when negative) or multiplied by the
/// penalty, once. The prompt is taken with its padding, as HF does.
///
/// ```
/// use mlxgk_logits_processors::{Context, EncoderRepetitionPenalty, LogitsProcessor};
///
/// let mut scores = [2.0, -2.0, 2.0, -2.0];
/// let prompt_and_generated = [0, 1, 2];
/// let context = Context::new(&prompt_and_generated, 2);
/// EncoderRepetitionPenalty::new(2.0)?.process(&context, &mut scores)?;
/// assert_eq!(scores, [4.0, -1.0, 2.0, -2.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderRepetitionPenalty {
    penalty: f64,
    inverse: f32,
    source: Source,
}

impl EncoderRepetitionPenalty {
    /// A reward (above 1) or penalty (below 1) for the tokens of the prompt.
    ///
    /// # Errors
    /// When `penalty` or its inverse is not a finite number above 0.
    pub fn new(penalty: f64) -> Result<Self> {
        positive("encoder_repetition_penalty", penalty)?;
        let inverse = positive("encoder_repetition_penalty", 1.0 / penalty)?;
        Ok(Self { penalty, inverse, source: Source::Prompt })
    }

    /// The same for the input of an encoder: one list of ids per batch item, found by
    /// [`Context::row`].
    pub fn for_encoder(self, encoder_input_ids: Vec<Vec<u32>>) -> Self {
        Self { source: Source::Encoder(encoder_input_ids), ..self }
    }
}

impl LogitsProcessor for EncoderRepetitionPenalty {
    fn name(&self) -> &'static str {
        "EncoderRepetitionPenaltyLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::EncoderRepetitionPenalty
    }

    /// # Errors
    /// When the source holds an id beyond the vocabulary, or the encoder read nothing for the row.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let tokens = self.source.tokens(context)?;
        in_vocabulary(tokens, scores.len(), "encoder_input_ids")?;
        rewrite_once(tokens, scores, |it| penalised(it, self.inverse));
        Ok(())
    }
}
