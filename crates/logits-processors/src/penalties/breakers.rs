//! What ends a repetition for DRY.

use std::collections::BTreeMap;

use crate::{Error, ErrorKind, Result};

/// llama.cpp's limits, which keep the search linear in the history.
const LONGEST_BREAKER: usize = 40;
const LONGEST_TAIL: usize = 20;

/// Token sequences across which [`Dry`](super::Dry) does not look for repetitions: the end of a
/// sentence, of a line, of a speaker's turn.
///
/// They are given as token sequences or worked out from strings, because one string can be spelt
/// by many tokens: a vocabulary may hold `".\n"` and `"\n\n"` beside `"\n"`.
///
/// ```
/// use mlxgk_logits_processors::{Context, Dry, LogitsProcessor, SequenceBreakers};
///
/// let text = [1, 2, 3, 9, 1, 2];
/// let score = |breakers: SequenceBreakers| {
///     let mut scores = [0.0; 10];
///     let dry = Dry::new(1.0, 2.0, 2)?.with_breakers(breakers);
///     dry.process(&Context::new(&text, 6), &mut scores)?;
///     Ok::<_, mlxgk_logits_processors::Error>(scores[3])
/// };
/// // A 3 would repeat the first three tokens, unless those lie behind a breaker.
/// assert!(score(SequenceBreakers::default())? < 0.0);
/// assert_eq!(score(SequenceBreakers::new([vec![2]])?)?, 0.0);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SequenceBreakers {
    /// First token of a breaker to all that may follow it.
    tails: BTreeMap<u32, Vec<Vec<u32>>>,
}

impl SequenceBreakers {
    /// Breakers given as token sequences.
    ///
    /// # Errors
    /// When a sequence is empty.
    ///
    /// ```
    /// use mlxgk_logits_processors::SequenceBreakers;
    ///
    /// let breakers = SequenceBreakers::new([vec![13], vec![5, 6]])?;
    /// assert_eq!(breakers.distance_to_last(&[13, 1, 5, 6, 2]), Some(1));
    /// # Ok::<(), mlxgk_logits_processors::Error>(())
    /// ```
    pub fn new(sequences: impl IntoIterator<Item = Vec<u32>>) -> Result<Self> {
        let mut breakers = Self::default();
        for mut sequence in sequences {
            if sequence.is_empty() {
                let message = "`dry_sequence_breakers` holds an empty sequence";
                return Err(Error::about("dry_sequence_breakers", ErrorKind::Parameter, message));
            }
            let tail = sequence.split_off(1);
            breakers.insert(sequence[0], tail);
        }
        Ok(breakers)
    }

    /// Breakers given as strings, over a vocabulary of byte strings (token id is index).
    ///
    /// Every token that holds the string is a breaker by itself. Every token that ends with a
    /// beginning of the string is one together with the tokens of the rest, which `tokenize` finds;
    /// it must add no special tokens. As in llama.cpp a string counts up to 40 bytes, and its rest
    /// up to 20 tokens. This reads the whole vocabulary once per string.
    ///
    /// # Errors
    /// When a string is empty.
    ///
    /// ```
    /// use mlxgk_logits_processors::SequenceBreakers;
    ///
    /// let vocabulary: [&[u8]; 5] = [b"a", b"\n", b".\n", b"<|", b"end|>"];
    /// let tokenize = |bytes: &[u8]| {
    ///     vocabulary.iter().position(|it| *it == bytes).map(|it| it as u32).into_iter().collect()
    /// };
    /// let breakers = SequenceBreakers::from_strings(["\n", "<|end|>"], &vocabulary, tokenize)?;
    /// assert_eq!(breakers, SequenceBreakers::new([vec![1], vec![2], vec![3, 4]])?);
    /// # Ok::<(), mlxgk_logits_processors::Error>(())
    /// ```
    pub fn from_strings<'a>(
        strings: impl IntoIterator<Item = &'a str>,
        vocabulary: &[impl AsRef<[u8]>],
        tokenize: impl Fn(&[u8]) -> Vec<u32>,
    ) -> Result<Self> {
        let mut breakers = Self::default();
        for string in strings {
            let string = &string.as_bytes()[..string.len().min(LONGEST_BREAKER)];
            if string.is_empty() {
                let message = "`dry_sequence_breakers` holds an empty string";
                return Err(Error::about("dry_sequence_breakers", ErrorKind::Parameter, message));
            }
            for (token, word) in (0..).zip(vocabulary) {
                let word = word.as_ref();
                if word.windows(string.len()).any(|it| it == string) {
                    breakers.insert(token, Vec::new());
                    continue;
                }
                for begun in 1..string.len().min(word.len() + 1) {
                    if word.ends_with(&string[..begun]) {
                        let mut tail = tokenize(&string[begun..]);
                        tail.truncate(LONGEST_TAIL);
                        breakers.insert(token, tail);
                    }
                }
            }
        }
        Ok(breakers)
    }

    /// How many tokens follow the last breaker in `so_far`; `None` without one.
    ///
    /// The search goes from the end and stops at the first token that begins a breaker; of several
    /// that begin there the longest counts.
    pub fn distance_to_last(&self, so_far: &[u32]) -> Option<usize> {
        if self.tails.is_empty() {
            return None;
        }
        (0..so_far.len()).rev().find_map(|at| {
            let rest = &so_far[at + 1..];
            let tails = self.tails.get(&so_far[at])?;
            let longest = tails.iter().filter(|it| rest.starts_with(it)).map(Vec::len).max()?;
            Some(rest.len() - longest)
        })
    }

    /// Whether the token is a breaker by itself.
    pub fn is_breaker(&self, token: u32) -> bool {
        self.tails.get(&token).is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }

    fn insert(&mut self, head: u32, tail: Vec<u32>) {
        let tails = self.tails.entry(head).or_default();
        if !tails.contains(&tail) {
            tails.push(tail);
        }
    }
}
