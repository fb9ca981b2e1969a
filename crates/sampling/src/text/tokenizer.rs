//! What tokens spell, and what is made from it.

use mlxgk_logits_processors::{Context, Dry, Error, ErrorKind, Result, SequenceBreakers};
use mlxgk_tokenizer_bridge::{StopStrings, Tokenizer};

#[cfg(feature = "grammars")]
use super::compiled::Grammars;
use crate::{FinishReason, StoppingCriterion};

/// What tokens spell: a tokenizer, and the grammar engine's tables over its vocabulary, which are
/// built for the first grammar and serve all others.
///
/// Cloning it is cheap: clones share both.
///
/// ```
/// use mlxgk_generation_config::GenerationConfig;
/// use mlxgk_samplers::Seed;
/// use mlxgk_sampling::{FinishReason, NextToken, Text};
/// use mlxgk_tokenizer_bridge::{Files, Tokenizer};
///
/// let json = r#"{
///     "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
///                 "use_regex": false},
///     "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "!": 2}, "merges": []}
/// }"#;
/// let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
/// let text = Text::from(Tokenizer::from_files(&files)?);
///
/// let stop = Some("!".to_owned().into());
/// let config = GenerationConfig { stop_strings: stop, ..Default::default() };
/// let resolved = config.resolve(&GenerationConfig::default(), 1, None)?;
/// let mut next = NextToken::new(&resolved, 3, Some(&text), Seed::Torch(0))?;
/// let step = next.next(&[0], &mut [0.1, 0.2, 0.7])?;
/// assert_eq!(step.finish_reason, Some(FinishReason::StopString));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Text {
    tokenizer: Tokenizer,
    #[cfg(feature = "grammars")]
    pub(super) grammars: Grammars,
}

impl From<Tokenizer> for Text {
    fn from(tokenizer: Tokenizer) -> Self {
        Self {
            tokenizer,
            #[cfg(feature = "grammars")]
            grammars: Grammars::default(),
        }
    }
}

impl Text {
    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn stop_at(&self, strings: Vec<String>) -> Result<Box<dyn StoppingCriterion>> {
        let strings = StopStrings::new(&self.tokenizer, strings)
            .map_err(|e| Error::about("stop_strings", ErrorKind::Parameter, e.to_string()))?;
        Ok(Box::new(AtStrings(strings)))
    }

    pub(super) fn with_breakers(
        &self,
        dry: Dry,
        breakers: Vec<&str>,
        vocab_size: usize,
    ) -> Result<Dry> {
        if breakers.is_empty() {
            return Ok(dry);
        }
        let texts = self.tokenizer.texts();
        let words: Vec<String> = (0..vocab_size as u32)
            .map(|id| match texts.bytes(id) {
                Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                // A breaker may be a special token.
                None => self.tokenizer.id_to_token(id).unwrap_or_default(),
            })
            .collect();
        // A text that cannot be spelled is not the tail of a breaker.
        let spell = |rest: &[u8]| {
            let text = std::str::from_utf8(rest).ok();
            text.and_then(|it| self.tokenizer.encode_continuation(it)).unwrap_or_default()
        };
        Ok(dry.with_breakers(SequenceBreakers::from_strings(breakers, &words, spell)?))
    }
}

/// Ends a row at a string.
struct AtStrings(StopStrings);

impl StoppingCriterion for AtStrings {
    fn ends(&mut self, context: &Context<'_>) -> Result<Option<FinishReason>> {
        let found = self.0.end(context.tokens);
        let found = found.map_err(|e| Error::new(ErrorKind::Callback, e.to_string()))?;
        Ok(found.then_some(FinishReason::StopString))
    }
}
