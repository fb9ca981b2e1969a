//! What a decoding loop needs of a model.

use mlxgk_kv_cache::KvCache;

use crate::Result;

/// A batch of sequences that can be continued by one token per row.
///
/// See the example of the [crate](crate), in which a counter is one.
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

    /// The cache, for a later request to resume; `None` for a model without one.
    fn into_cache(self) -> Option<KvCache>
    where
        Self: Sized,
    {
        None
    }
}

/// A model whose rows can be rearranged between steps: what strategies need that follow several
/// continuations of a text at once.
///
/// ```
/// use mlxgk_decoding_strategies::{DecoderSession, LanguageModel, LeftPadded, Reorder};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9], vec![7, 30]], 0)?;
/// let mut session = DecoderSession::prefill(&model, &prompts, 64, NoHook)?;
/// session.reorder(&[1, 1, 0])?; // two continuations of the second text
/// session.feed(&[14, 2, 8])?;
/// assert_eq!(session.cache().tokens(1), [7, 30, 2]);
/// assert_eq!(session.cache().tokens(2), [5, 9, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Reorder: LanguageModel {
    /// Keeps the given rows in the given order: row *i* continues what row `rows[i]` was fed.
    /// Rows may be dropped and repeated. The scores move along.
    ///
    /// # Errors
    /// When `rows` is empty or names a row that does not exist, or the model fails.
    fn reorder(&mut self, rows: &[usize]) -> Result<()>;

    /// Whether a row's scores depend on the other rows, so that rows that have ended have to stay.
    fn couples_rows(&self) -> bool {
        false
    }
}

/// A model that rows can be added to between steps.
///
/// ```
/// use mlxgk_decoding_strategies::{DecoderSession, Join, LanguageModel, LeftPadded};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let fed = |tokens: &[u32]| {
///     DecoderSession::prefill(&model, &LeftPadded::new(&[tokens.to_vec()], 0)?, 64, NoHook)
/// };
/// let mut session = fed(&[5, 9, 14])?;
/// session.join(fed(&[7])?)?;
/// assert_eq!(session.scores()?.len(), 2 * model.vocab_size());
/// session.feed(&[30, 2])?;
/// assert_eq!(session.cache().padding(), [0, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Join: Reorder + Sized {
    /// Adds the rows of another after this one's. The scores move along.
    ///
    /// # Errors
    /// When the two cannot run as one batch. This one is then as it was.
    fn join(&mut self, other: Self) -> Result<()>;
}
