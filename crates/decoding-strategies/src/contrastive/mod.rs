//! Contrastive search (Su et al., arXiv 2202.06417), as transformers 4.46 did it
//! (`_contrastive_search`).
//!
//! Of the likeliest tokens, the one is taken that is likely and yet leads to a hidden state unlike
//! those before, so that the text does not fall into repetition. Every candidate has to go through
//! the model for that; the one that is taken need not again.

mod contrastive_loop;
mod session;

pub use self::contrastive_loop::{ContrastiveLoop, ContrastiveOptions};
pub use self::session::ContrastiveSession;

use crate::{Reorder, Result};

/// A model that tries several tokens for each row before one of them counts.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     ContrastiveSession, DecoderSession, LanguageModel, LeftPadded, Lookahead, Prefill,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14]], 0)?;
/// let mut session = ContrastiveSession::prefill(Prefill::new(&model, &prompts, NoHook))?;
/// // Three candidates for the one row: how alike each one's state is to those before it.
/// let cosines = session.look_ahead(&[14, 30, 7], 3)?;
/// assert!(cosines.len() == 3 && cosines.iter().all(|it| (-1.001..=1.001).contains(it)));
/// session.accept(&[1])?; // 30
/// let fed = LeftPadded::new(&[vec![5, 9, 14, 30]], 0)?;
/// let mut whole = DecoderSession::prefill(&model, &fed, 64, NoHook)?;
/// let mut scores = session.scores()?.iter().zip(whole.scores()?);
/// assert!(scores.all(|(a, b)| (a - b).abs() < 1e-4));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Lookahead: Reorder {
    /// Feeds each row `per_row` of `tokens`, each to a copy of its own. Returns how much each copy's
    /// new hidden state resembles the most similar one of its row so far: the cosine, in -1..=1,
    /// `rows · per_row` values.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the model fails.
    fn look_ahead(&mut self, tokens: &[u32], per_row: usize) -> Result<Vec<f32>>;

    /// Continues with one copy of each row: `copies[i]` counts from the first copy of row *i*. The
    /// scores are then those that follow it.
    ///
    /// # Errors
    /// When nothing was tried, or the model fails.
    fn accept(&mut self, copies: &[usize]) -> Result<()>;
}
