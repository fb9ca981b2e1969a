//! The loops that turn logits into sequences.
//!
//! A loop needs little of a model: feed a token per row, read the scores. That is [`LanguageModel`].
//! [`DecoderSession`] is the one that runs an MLX decoder, with its cache and its hook; a table of
//! numbers will do for a test. [`Decoding`] is the greedy and sampling loop (HF `_sample`), an
//! iterator with one item per step, so a caller can stream, stop or give up at any token.
//!
//! ```
//! use mlxgk_decoding_strategies::{Decoding, LanguageModel, Reorder, Result, Rule, Stop};
//! use mlxgk_logits_processors::ProcessorList;
//!
//! /// A model that always wants to say the next number.
//! struct Counter {
//!     scores: Vec<f32>,
//! }
//!
//! impl LanguageModel for Counter {
//!     fn vocab_size(&self) -> usize {
//!         self.scores.len()
//!     }
//!
//!     fn feed(&mut self, tokens: &[u32]) -> Result<()> {
//!         self.scores.fill(0.0);
//!         self.scores[tokens[0] as usize + 1] = 1.0;
//!         Ok(())
//!     }
//!
//!     fn scores(&mut self) -> Result<&[f32]> {
//!         Ok(&self.scores)
//!     }
//! }
//!
//! impl Reorder for Counter {
//!     /// There is one row, and it stays.
//!     fn reorder(&mut self, _: &[usize]) -> Result<()> {
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let mut model = Counter { scores: vec![0.0; 10] };
//! model.feed(&[2])?;
//! let stop = Stop { max_new_tokens: 5, eos: vec![6] };
//! let prompt = vec![vec![0, 1, 2]];
//! let mut decoding =
//!     Decoding::new(model, &prompt, &[0], ProcessorList::default(), Rule::Greedy, stop, 0);
//! for step in decoding.by_ref() {
//!     print!("{:?} ", step?[0]);
//! }
//! assert_eq!(decoding.rows()[0].tokens, [3, 4, 5, 6]);
//! # Ok(())
//! # }
//! ```

mod assisted;
mod beam;
mod budget;
mod continuous;
mod contrastive;
mod decoding;
mod dola;
mod error;
mod guided;
mod keep;
mod model;
mod prompts;
mod sampling;
mod score;
mod session;
mod stopping;
mod top_k;

pub use self::assisted::{
    Acceptance, AssistantOptions, AssistedDecoding, CandidateGenerator, Candidates, DraftModel,
    PromptLookup, Schedule, Speculative, Turn,
};
pub use self::beam::{
    Beam, BeamOptions, BeamSearch, Constraint, EarlyStopping, HeapBeamSearch, Variant,
};
pub use self::continuous::{ContinuousBatch, Event, Joining};
pub use self::contrastive::{Contrast, ContrastiveSearch, ContrastiveSession, Rehearse};
pub use self::decoding::{Decoded, Decoding};
pub use self::dola::{DolaLayers, DolaSession};
pub use self::error::{Error, ErrorKind, Result};
pub use self::guided::Guided;
pub use self::keep::{Keep, Kept, TokenLogprobs};
pub use self::model::{LanguageModel, Reorder};
pub use self::prompts::LeftPadded;
pub use self::sampling::{Rule, Sampling};
pub use self::score::score;
pub use self::session::{DEFAULT_PREFILL_CHUNK, DecoderSession};
pub use self::stopping::{FinishReason, MaxTime, Stop, Stopping, StoppingCriterion};
