//! The loops that turn logits into sequences.
//!
//! A loop needs little of a model: feed a token per row, read the scores. That is [`LanguageModel`].
//! [`DecoderSession`] is the one that runs an MLX decoder, with its cache and its hook; a table of
//! numbers will do for a test. [`SampleLoop`] is the greedy and sampling loop (HF `_sample`). All
//! loops are [`TokenLoop`]s: each step says what became of every row, so a caller can stream, stop or
//! give up at any token.
//!
//! ```
//! use mlxgk_decoding_strategies::{
//!     LanguageModel, LeftPadded, Limits, Reorder, Result, RowGroup, SampleLoop, TokenLoop,
//! };
//!
//! /// A model whose likeliest token is always the next number.
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
//! let prompt = LeftPadded::new(&[vec![0, 1, 2]], 0)?;
//! let group = RowGroup::greedy(Limits { max_new_tokens: 5, eos: vec![6] });
//! let mut counting = SampleLoop::new(model, &prompt, group);
//! while let Some(step) = counting.step() {
//!     println!("{:?}", step?[0]);
//! }
//! assert_eq!(counting.into_parts().1[0].tokens, [3, 4, 5, 6]);
//! # Ok(())
//! # }
//! ```

pub use mlxgk_kv_cache::RowId;
pub use mlxgk_sampling::{
    Chooser, FinishReason, Limits, MaxTime, Rules, Sampling, StopConditions, StoppingCriterion,
};

mod ahead;
mod assisted;
mod beam;
mod budget;
mod continuous;
mod contrastive;
mod device_choice;
mod dola;
mod error;
mod model;
mod parts;
mod pending;
mod prefill;
mod prefixes;
mod prompts;
mod reader;
mod record;
mod rows;
mod sample;
mod score;
mod session;
mod soft_prompt;
mod token_loop;

pub use self::ahead::AheadLoop;
pub use self::assisted::{
    Acceptance, AssistantOptions, AssistedLoop, CandidateGenerator, Candidates, DraftContext,
    DraftModel, FinalStates, Guide, MtpDraft, PromptLookup, Schedule, Speculative,
};
pub use self::beam::{
    BeamOptions, BeamPath, BeamSearch, Constraint, EarlyStopping, HeapBeamSearch, Variant,
};
pub use self::continuous::{ContinuousBatch, JOIN_CHUNK};
pub use self::contrastive::{ContrastiveLoop, ContrastiveOptions, ContrastiveSession, Lookahead};
pub use self::device_choice::DeviceChoice;
pub use self::dola::DolaLayers;
pub use self::error::{Error, ErrorKind, Result};
pub use self::model::{Join, LanguageModel, Reorder};
pub use self::parts::InParts;
pub use self::prefill::{DEFAULT_PREFILL_CHUNK, Prefill};
pub use self::prompts::LeftPadded;
pub use self::record::{Record, Recorded, TokenLogprobs};
pub use self::rows::RowGroup;
pub use self::sample::SampleLoop;
pub use self::score::score;
pub use self::session::DecoderSession;
pub use self::token_loop::{LoopOutput, RowEvent, RowOutcome, RowOutput, TokenLoop};
