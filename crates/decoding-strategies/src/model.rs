//! What a decoding loop needs of a model.

use crate::Result;

/// A batch of sequences that can be continued by one token per row.
pub trait LanguageModel {
    /// Scores per row.
    fn vocab_size(&self) -> usize;

    /// Appends one token to every row and starts computing the scores that follow it. Returns without
    /// waiting for them, so the caller works while the device does.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the model fails.
    fn feed(&mut self, tokens: &[u32]) -> Result<()>;

    /// The scores for the next token of every row: raw fp32 logits, `rows · vocab_size`, row after
    /// row. Waits for them.
    ///
    /// # Errors
    /// When the model fails.
    fn scores(&mut self) -> Result<&[f32]>;
}

/// A model whose rows can be rearranged between steps: what strategies need that follow several
/// continuations of a text at once.
pub trait Reorder: LanguageModel {
    /// Keeps the given rows in the given order: row *i* goes on from what row `rows[i]` was fed.
    /// Rows may be dropped and repeated. The scores move along.
    ///
    /// # Errors
    /// When `rows` is empty or names a row that does not exist, or the model fails.
    fn reorder(&mut self, rows: &[usize]) -> Result<()>;
}
