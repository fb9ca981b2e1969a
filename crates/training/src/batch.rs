//! What a loss is taken over: rows of tokens, and which of them are to be predicted.
//!
//! Labels follow Hugging Face: a token's label stands at the token's own place, and the shift (the
//! state before it predicts it) is made here, once, for every loss and score of the crate. The label of
//! a row's first token is never used, because nothing precedes it.

use mlx_rs::Array;

use crate::{Error, Result};

/// The label of a token that is read but not predicted (torch's `ignore_index`).
pub const IGNORE_INDEX: i32 = -100;

/// One sequence: its tokens, and a label for each.
///
/// ```
/// use mlxgk_training::{Example, IGNORE_INDEX};
///
/// let example = Example::completion(&[5, 17], &[300, 2]);
/// assert_eq!(example.tokens, [5, 17, 300, 2]);
/// // A label stands at its own token's place; the prompt has none.
/// assert_eq!(example.labels, [IGNORE_INDEX, IGNORE_INDEX, 300, 2]);
/// assert_eq!(example.supervised(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// What each place is to be, or [`IGNORE_INDEX`]; as long as `tokens`.
    pub labels: Vec<i32>,
}

impl Example {
    /// A text of which every token is predicted.
    pub fn text(tokens: Vec<u32>) -> Self {
        let labels = tokens.iter().map(|&it| it as i32).collect();
        Self { tokens, labels }
    }

    /// A text of which only what follows the prompt is predicted.
    pub fn completion(prompt: &[u32], completion: &[u32]) -> Self {
        let mut labels = vec![IGNORE_INDEX; prompt.len()];
        labels.extend(completion.iter().map(|&it| it as i32));
        Self { tokens: [prompt, completion].concat(), labels }
    }

    /// How many tokens are predicted.
    pub fn supervised(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&it| it != IGNORE_INDEX).count()
    }
}

/// Sequences side by side, padded on the right: under a causal mask no token sees what pads it.
///
/// ```
/// use mlxgk_training::{Batch, Example};
///
/// let batch = Batch::new(&[Example::completion(&[5, 17], &[300, 2]), Example::text(vec![8, 9])])?;
/// assert_eq!((batch.rows(), batch.width()), (2, 4));
/// // Nothing comes before the first token of a text, so that it is not predicted.
/// assert_eq!(batch.counts(), [2, 1]);
/// assert_eq!(batch.row_of().collect::<Vec<_>>(), [0, 0, 1]);
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Batch {
    pub(crate) tokens: Vec<Vec<u32>>,
    width: usize,
    /// Per predicted token: its row, the column it is predicted from, and its id.
    places: Vec<(u32, u32, u32)>,
}

impl Batch {
    /// A batch of at least one sequence.
    ///
    /// # Errors
    /// When there is no sequence, one is empty, or has not one label per token, or a label is negative
    /// and not [`IGNORE_INDEX`].
    pub fn new(examples: &[Example]) -> Result<Self> {
        let width = examples.iter().map(|it| it.tokens.len()).max().unwrap_or(0);
        if examples.iter().any(|it| it.tokens.is_empty()) || width == 0 {
            return Err(Error::data("a batch needs sequences of at least one token each"));
        }
        let (mut tokens, mut places) = (Vec::with_capacity(examples.len()), Vec::new());
        for (row, example) in examples.iter().enumerate() {
            let (count, labels) = (example.tokens.len(), &example.labels);
            if labels.len() != count {
                let what = format!("sequence {row} has {count} tokens and {} labels", labels.len());
                return Err(Error::data(what));
            }
            for (column, &label) in labels.iter().enumerate().skip(1) {
                match u32::try_from(label) {
                    Ok(label) => places.push((row as u32, column as u32 - 1, label)),
                    Err(_) if label == IGNORE_INDEX => {}
                    Err(_) => {
                        let what = format!(
                            "label {label} of sequence {row} is neither a token nor {IGNORE_INDEX}"
                        );
                        return Err(Error::data(what));
                    }
                }
            }
            let mut row = example.tokens.clone();
            row.resize(width, 0);
            tokens.push(row);
        }
        Ok(Self { tokens, width, places })
    }

    /// How many sequences there are.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of the longest one.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many tokens are predicted.
    pub fn supervised(&self) -> usize {
        self.places.len()
    }

    /// The row of each predicted token, in the order that every loss takes their log-probabilities in:
    /// row by row, from left to right.
    pub fn row_of(&self) -> impl Iterator<Item = usize> + '_ {
        self.places.iter().map(|&(row, ..)| row as usize)
    }

    /// Sums over a row's predicted tokens as a product: `[rows, predicted]`, 1 where the token is the
    /// row's.
    pub fn row_sums(&self) -> Array {
        self.row_weights(|_| 1.0)
    }

    /// Means over a row's predicted tokens, in the same way; of a row without any it is 0.
    pub fn row_means(&self) -> Array {
        let counts = self.counts();
        self.row_weights(|row| 1.0 / counts[row] as f32)
    }

    /// How many tokens of each row are predicted.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.rows()];
        self.row_of().for_each(|row| counts[row] += 1);
        counts
    }

    fn row_weights(&self, weight: impl Fn(usize) -> f32) -> Array {
        let (rows, count) = (self.rows(), self.supervised());
        let mut weights = vec![0.0_f32; rows * count];
        for (place, row) in self.row_of().enumerate() {
            weights[row * count + place] = weight(row);
        }
        Array::from_slice(&weights, &[rows as i32, count as i32])
    }

    /// The ids of the predicted tokens.
    pub(crate) fn targets(&self) -> Vec<u32> {
        self.places.iter().map(|it| it.2).collect()
    }

    /// Where they are predicted from, among the states of all rows one after the other, each with so
    /// many columns before its first token.
    pub(crate) fn states(&self, before: usize) -> Vec<u32> {
        let stride = (self.width + before) as u32;
        self.places.iter().map(|it| it.0 * stride + it.1 + before as u32).collect()
    }

    /// Refuses tokens and labels that the model does not have, and rows longer than its context.
    pub(crate) fn check(&self, vocab: usize, context: usize) -> Result<()> {
        let ids = self.tokens.iter().flatten().copied().chain(self.places.iter().map(|it| it.2));
        if let Some(id) = ids.into_iter().find(|&it| it as usize >= vocab) {
            return Err(Error::data(format!("token id {id} is outside the vocabulary of {vocab}")));
        }
        if self.width > context {
            let width = self.width;
            let what = format!("a sequence of {width} tokens is beyond the context of {context}");
            return Err(Error::data(what));
        }
        Ok(())
    }
}

/// Which places of a batch count: those from the end of each row's prompt on, `[row][place]`, for rows
/// of `seq_len` places. A mask of labels: the place of a token, not the one it is predicted from.
///
/// ```
/// use mlxgk_training::build_action_mask;
///
/// assert_eq!(build_action_mask(&[1, 3], 3), [[false, true, true], [false, false, false]]);
/// ```
pub fn build_action_mask(prompt_lens: &[usize], seq_len: usize) -> Vec<Vec<bool>> {
    let row = |&prompt: &usize| (0..seq_len).map(|place| place >= prompt).collect();
    prompt_lens.iter().map(row).collect()
}
