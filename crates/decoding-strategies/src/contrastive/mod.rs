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
