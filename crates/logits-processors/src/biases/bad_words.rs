//! Bad words.

use std::fmt;

use super::SequenceBias;
use crate::shown::Shown;
use crate::{Context, Error, ErrorKind, LogitsProcessor, Result, Stage};

/// Bans token sequences: the last token of each, when the rest immediately precedes it
/// (`NoBadWordsLogitsProcessor`).
///
/// A list that consists of one end token is dropped, because banning the end is not banning a word.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, NoBadWords};
///
/// let mut scores = [0.0; 4];
/// NoBadWords::new([vec![0, 1], vec![3]], &[3])?.process(&Context::new(&[0], 1), &mut scores)?;
/// assert_eq!(scores, [0.0, f32::NEG_INFINITY, 0.0, 0.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct NoBadWords(SequenceBias);

impl NoBadWords {
    /// A ban on the words, given as token sequences, where `eos_token_ids` end a text.
    ///
    /// # Errors
    /// When there is no word, or an empty one (which HF ignores).
    pub fn new(
        bad_words_ids: impl IntoIterator<Item = Vec<u32>>,
        eos_token_ids: &[u32],
    ) -> Result<Self> {
        let mut words = bad_words_ids.into_iter().peekable();
        if words.peek().is_none() {
            return Err(Error::about(
                "bad_words_ids",
                ErrorKind::Parameter,
                "`bad_words_ids` must not be empty",
            ));
        }
        let is_end = |it: &[u32]| matches!(it, [token] if eos_token_ids.contains(token));
        let banned = words.filter(|it| !is_end(it)).map(|it| (it, f64::NEG_INFINITY));
        SequenceBias::named("bad_words_ids", banned).map(Self)
    }
}

impl LogitsProcessor for NoBadWords {
    fn name(&self) -> &'static str {
        "NoBadWordsLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::NoBadWords
    }

    /// # Errors
    /// When a word names a token beyond the vocabulary.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        self.0.apply("bad_words_ids", context, scores)
    }
}

impl fmt::Debug for NoBadWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NoBadWords").field(&Shown(&self.0.sequences())).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_word_is_an_error_and_an_end_token_none() {
        for words in [vec![], vec![vec![1], vec![]]] {
            assert_eq!(NoBadWords::new(words, &[]).unwrap_err().kind(), ErrorKind::Parameter);
        }
        let mut scores = [0.0; 3];
        let nothing = NoBadWords::new([vec![2]], &[2]).unwrap();
        nothing.process(&Context::new(&[2], 1), &mut scores).unwrap();
        assert_eq!(scores, [0.0; 3]);
    }
}
