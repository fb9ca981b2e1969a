//! Logits processors: penalties, bans and constraints on the next token's scores.
//!
//! A language model gives every token of its vocabulary a score. A *processor* rewrites the scores
//! of one row before a token is chosen: it bans, forces, favours or penalises tokens, depending on
//! the tokens so far. This crate has those of Hugging Face's `generate()`, with the results of
//! transformers 5.23 to the last digits, and some that transformers lacks. It knows no tensor
//! library: a row of scores is a `&mut [f32]`, a text is a `&[u32]`.
//!
//! ```
//! use mlxgk_logits_processors::{
//!     Context, LogitsProcessor, NoRepeatNGram, ProcessorList, RepetitionPenalty,
//! };
//!
//! let processors = ProcessorList::in_hf_order(vec![
//!     Box::new(NoRepeatNGram::new(2)?),
//!     Box::new(RepetitionPenalty::new(1.3)?),
//! ]);
//! // A prompt of two tokens and one new token; scores as the model made them.
//! let so_far = [3, 1, 3];
//! let mut scores = [0.1, 2.0, 0.3, 1.3];
//! processors.process(&Context::new(&so_far, 2), &mut scores)?;
//! assert_eq!(scores, [0.1, f32::NEG_INFINITY, 0.3, 1.0]);
//! # Ok::<(), mlxgk_logits_processors::Error>(())
//! ```
//!
//! # What there is
//!
//! | | HF's | beside HF's |
//! |---|---|---|
//! | repetition | [`RepetitionPenalty`], [`EncoderRepetitionPenalty`], [`NoRepeatNGram`], [`EncoderNoRepeatNGram`] | [`FrequencyPenalty`], [`PresencePenalty`], [`Dry`] |
//! | bias | [`SequenceBias`], [`NoBadWords`], [`SuppressTokens`], [`SuppressTokensAtBegin`] | [`TokenBias`] |
//! | length | [`MinLength`], [`MinNewTokensLength`], [`ExponentialDecayLengthPenalty`] | |
//! | force | [`ForcedBos`], [`ForcedEos`], [`ForcedDecoderIds`], [`PrefixConstrained`] | [`TokenTrie`] |
//! | numbers | [`InfNanRemove`], [`LogitNormalization`], [`guide`] | |
//! | watermark | [`Watermark`], [`SynthIdText`], [`WatermarkDetector`], [`BayesianDetector`] | [`SynthIdTextDetector`] |
//!
//! Temperature, top-k, top-p and the other *warpers*, and the draw itself, are in `mlxgk-samplers`.
//!
//! # Rules
//!
//! - A processor is a pure function of the row. It may be called again, on another beam, or after
//!   a rollback, and needs no reset.
//! - A ban is minus infinity, and stays. Only [`InfNanRemove`], the forcing processors and
//!   [`PrefixConstrained`] lift bans, by design; [`SynthIdText`] writes them as the smallest number.
//! - Parameters are checked when a processor is made, tokens when it is used, and both give an
//!   [`Error`] that names them. No parameter makes NaN or a panic.
//! - The order of a list is HF's, by [`Stage`].

mod biases;
mod constraints;
mod context;
mod error;
mod forced;
mod lengths;
mod list;
mod mask;
mod ngrams;
mod numeric;
mod penalties;
mod processor;
mod scratch;
mod shown;
mod source;
mod stage;
mod suppress;
mod synthid;
mod watermark;

pub use self::biases::{NoBadWords, SequenceBias, TokenBias};
pub use self::constraints::{PrefixConstrained, TokenTrie};
pub use self::context::Context;
pub use self::error::{Error, ErrorKind, Result};
pub use self::forced::{ForcedBos, ForcedDecoderIds, ForcedEos};
pub use self::lengths::{ExponentialDecayLengthPenalty, MinLength, MinNewTokensLength};
pub use self::list::ProcessorList;
pub use self::ngrams::{EncoderNoRepeatNGram, NoRepeatNGram};
pub use self::numeric::{InfNanRemove, LogitNormalization, guide, log_softmax};
pub use self::penalties::{
    Dry, EncoderRepetitionPenalty, FrequencyPenalty, History, PresencePenalty, RepetitionPenalty,
    SequenceBreakers,
};
pub use self::processor::{LogitsProcessor, Row};
pub use self::stage::Stage;
pub use self::suppress::{SuppressTokens, SuppressTokensAtBegin};
pub use self::synthid::{
    BayesianDetector, GValues, SynthIdText, SynthIdTextDetector, SynthIdTextWatermarkingConfig,
};
pub use self::watermark::{
    SeedingScheme, Watermark, WatermarkDetection, WatermarkDetector, WatermarkingConfig,
};

/// The code of the README, which the doc tests compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
