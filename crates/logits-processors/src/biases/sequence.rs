//! Biases on token sequences.

use std::collections::HashMap;
use std::fmt;

use super::bias;
use crate::mask::in_vocabulary;
use crate::shown::Shown;
use crate::{Context, Error, ErrorKind, LogitsProcessor, Result, Stage};

/// Adds a bias to the last token of a sequence when the rest of it immediately precedes it
/// (`SequenceBiasLogitsProcessor`).
///
/// A sequence of one token is biased at every step. Biases of several sequences that end in the
/// same token add up. Of a sequence given twice the last bias counts. The row is matched with its
/// padding, as HF does.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, SequenceBias};
///
/// let bias = SequenceBias::new([(vec![2], 1.0), (vec![0, 1, 2], 4.0), (vec![3, 0], -1.0)])?;
/// let mut scores = [0.0; 4];
/// bias.process(&Context::new(&[3, 0, 1], 3), &mut scores)?;
/// assert_eq!(scores, [0.0, 0.0, 5.0, 0.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct SequenceBias {
    /// Sorted by the token they bias; those of one token in the order in which torch adds them.
    biases: Vec<Bias>,
    largest: u32,
}

#[derive(Clone, PartialEq)]
struct Bias {
    prefix: Vec<u32>,
    token: u32,
    bias: f32,
}

impl SequenceBias {
    /// Biases by sequence.
    ///
    /// # Errors
    /// When there is none, a sequence is empty, or a bias is NaN or plus infinity.
    pub fn new(sequences: impl IntoIterator<Item = (Vec<u32>, f64)>) -> Result<Self> {
        let it = Self::named("sequence_bias", sequences)?;
        if it.biases.is_empty() {
            return Err(Error::about(
                "sequence_bias",
                ErrorKind::Parameter,
                "`sequence_bias` must not be empty",
            ));
        }
        Ok(it)
    }

    /// As [`new`](Self::new), or none, with the parameter's name for the messages.
    pub(super) fn named(
        name: &str,
        sequences: impl IntoIterator<Item = (Vec<u32>, f64)>,
    ) -> Result<Self> {
        let mut biases: Vec<Bias> = Vec::new();
        let mut places = HashMap::new();
        let mut lengths = vec![1];
        for (sequence, value) in sequences {
            let value = bias(name, value)?;
            let Some((&token, prefix)) = sequence.split_last() else {
                let message = format!("`{name}` holds an empty sequence");
                return Err(Error::about(name, ErrorKind::Parameter, message));
            };
            let prefix = prefix.to_vec();
            if !lengths.contains(&sequence.len()) {
                lengths.push(sequence.len());
            }
            let place = *places.entry(sequence).or_insert(biases.len());
            match biases.get_mut(place) {
                Some(earlier) => earlier.bias = value,
                None => biases.push(Bias { prefix, token, bias: value }),
            }
        }
        // torch adds single tokens first, then the sequences of each length, in the order in which
        // the lengths appeared. The sum is rounded at each step, so the order is part of the result.
        biases.sort_by_key(|it| {
            (it.token, lengths.iter().position(|&length| length == it.prefix.len() + 1))
        });
        let largest = places.keys().flatten().copied().max().unwrap_or(0);
        Ok(Self { biases, largest })
    }

    /// The sequences, without their biases.
    pub(super) fn sequences(&self) -> Vec<Vec<u32>> {
        self.biases.iter().map(Bias::sequence).collect()
    }

    /// Adds the biases; `name` is the parameter's, for the message.
    pub(super) fn apply(
        &self,
        name: &str,
        context: &Context<'_>,
        scores: &mut [f32],
    ) -> Result<()> {
        in_vocabulary(&[self.largest], scores.len(), name)?;
        for of_token in self.biases.chunk_by(|a, b| a.token == b.token) {
            let mut due = of_token.iter().filter(|it| context.tokens.ends_with(&it.prefix));
            if let Some(first) = due.next() {
                let sum = due.fold(first.bias, |sum, it| sum + it.bias);
                let score = &mut scores[first.token as usize];
                // Biases too large to add up must not lift a ban, whether earlier or among them.
                let banned = *score == f32::NEG_INFINITY || sum.is_nan();
                *score = if banned { f32::NEG_INFINITY } else { *score + sum };
            }
        }
        Ok(())
    }
}

impl Bias {
    fn sequence(&self) -> Vec<u32> {
        [&self.prefix[..], &[self.token]].concat()
    }
}

impl LogitsProcessor for SequenceBias {
    fn name(&self) -> &'static str {
        "SequenceBiasLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::SequenceBias
    }

    /// # Errors
    /// When a sequence names a token beyond the vocabulary.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        self.apply("sequence_bias", context, scores)
    }
}

impl fmt::Debug for SequenceBias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SequenceBias").field(&Shown(&self.biases)).finish()
    }
}

impl fmt::Debug for Bias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:?}", self.sequence(), self.bias)
    }
}
