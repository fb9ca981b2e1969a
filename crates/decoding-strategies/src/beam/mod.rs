//! Beam search: several continuations of each prompt at once, of which the likeliest are kept.
//!
//! [`BeamSearch`] is transformers 5's vectorised search, which also draws. [`HeapBeamSearch`] has
//! what transformers 5 moved out: groups of beams, and words that have to occur. Their common parts:
//! `log_probs` makes of logits what a token adds to a beam's score, `hypothesis` is a beam with its
//! history.

mod constrained;
mod constraint;
mod heap;
mod heap_search;
mod hypothesis;
mod log_probs;
mod search;

pub use self::constraint::Constraint;
pub use self::heap_search::{HeapBeamSearch, Variant};
pub use self::search::BeamSearch;

use crate::{Error, ErrorKind, Result};

/// When the search for one prompt is over, apart from the length: HF's `early_stopping`.
///
/// See the example of [`BeamSearch`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: when the best running beam, scored at its present length, no longer beats the worst
    /// finished one.
    #[default]
    Heuristic,
    /// `true`: as soon as there are as many finished sequences as beams.
    WhenFinished,
    /// `"never"`: when no running beam can beat the worst finished one at any length.
    Never,
}

/// How beams are kept and scored.
///
/// See the example of [`BeamSearch`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamOptions {
    /// Continuations followed per prompt; at least 1.
    pub num_beams: usize,
    /// Sequences returned per prompt; at most `num_beams`.
    pub num_return_sequences: usize,
    /// A sequence's score is the sum of its tokens' log-probabilities, divided by its number of new
    /// tokens to this power.
    pub length_penalty: f64,
    /// When the search is over.
    pub early_stopping: EarlyStopping,
}

impl BeamOptions {
    /// # Errors
    /// When there are no beams, or fewer than sequences to return.
    fn check(&self) -> Result<()> {
        let (beams, sequences) = (self.num_beams, self.num_return_sequences);
        if beams == 0 || sequences > beams {
            let what = format!("{beams} beams are too few for {sequences} sequences");
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        Ok(())
    }
}

/// How a search came by a sequence.
///
/// See the example of [`BeamSearch`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BeamPath {
    /// Which prompt it continues.
    pub prompt_index: usize,
    /// HF's `sequences_scores`: natural logarithm, length penalty applied.
    pub score: f32,
    /// HF's `beam_indices`: for each new token, the row (`prompt_index · num_beams + beam`) whose
    /// scores it was chosen from.
    pub beam_indices: Vec<usize>,
    /// HF's transition scores: what each new token added, its processed log-probability. Their sum,
    /// divided by the number of tokens to the power of the length penalty, is `score`.
    pub transition_scores: Vec<f32>,
}
