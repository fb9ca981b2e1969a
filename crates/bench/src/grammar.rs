//! The mask of a JSON schema, token after token, as a structured request needs it.

use mlx_genkit::{
    grammars::{Grammar, GrammarProcessor, Vocabulary},
    logits_processors::{Context, LogitsProcessor},
};
use serde_json::json;

use crate::{Result, sampling::VOCAB};

/// What is written under the schema: keys, strings, a number, a list.
const DOCUMENT: &[u8] =
    br#"{"name": "Ada Lovelace", "age": 36, "tags": ["mathematics", "engine"]}"#;

/// A request that writes a document under a schema, over and over.
#[derive(Debug)]
pub struct Masks {
    processor: GrammarProcessor,
    tokens: Vec<u32>,
    scores: Vec<f32>,
    written: usize,
}

impl Masks {
    /// Compiles the schema for a vocabulary of [`VOCAB`] tokens.
    ///
    /// # Errors
    /// When the grammar crate refuses either.
    pub fn new() -> Result<Self> {
        Self::over(&vocabulary(VOCAB)?, VOCAB)
    }

    /// Compiles the schema for a [vocabulary](vocabulary()) of `count` tokens.
    ///
    /// # Errors
    /// When the grammar crate refuses the schema.
    pub fn over(vocabulary: &Vocabulary, count: usize) -> Result<Self> {
        let schema = json!({
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": false,
        });
        let processor = GrammarProcessor::new(vocabulary, &Grammar::json_schema(&schema)?)?;
        let tokens = DOCUMENT.iter().map(|&byte| u32::from(byte)).collect();
        Ok(Self { processor, tokens, scores: vec![0.0; count], written: 0 })
    }

    /// Bans what cannot follow the tokens written so far, and writes the next.
    ///
    /// # Errors
    /// When the document does not fit the schema.
    pub fn step(&mut self) -> Result<()> {
        let context = Context::new(&self.tokens[..self.written], 0);
        // What earlier masks banned stays so, for filling the row would cost more than the mask.
        self.scores[self.tokens[self.written] as usize] = 0.0;
        self.processor.process(&context, &mut self.scores)?;
        self.written = (self.written + 1) % self.tokens.len();
        Ok(())
    }
}

/// Every byte, then words of letters with and without a leading space: the shape of a real byte-pair
/// vocabulary of `count` tokens, without its content.
///
/// # Errors
/// When the grammar crate refuses it.
pub fn vocabulary(count: usize) -> Result<Vocabulary> {
    Ok(Vocabulary::new(&tokens(count), &[count as u32 - 1])?)
}

fn tokens(count: usize) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    while tokens.len() + 1 < count {
        let mut word = if random(2) == 0 { vec![b' '] } else { Vec::new() };
        word.extend((0..2 + random(7)).map(|_| b'a' + random(26) as u8));
        tokens.push(word);
    }
    tokens.push(b"\xff<|end|>".to_vec());
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_fits_the_schema_and_begins_with_a_brace() {
        let mut masks = Masks::new().unwrap();
        masks.step().unwrap();
        let allowed = (0..VOCAB).filter(|&id| masks.scores[id] == 0.0).collect::<Vec<_>>();
        assert_eq!(allowed, [usize::from(b'{')]);
        (1..DOCUMENT.len()).for_each(|_| masks.step().unwrap());
    }
}
