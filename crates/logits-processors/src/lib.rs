//! Logits processors: what may be said next, given what was said.

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
pub mod torch_math;
mod torch_random;
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
pub use self::torch_random::TorchRng;
pub use self::watermark::{
    SeedingScheme, Watermark, WatermarkDetection, WatermarkDetector, WatermarkingConfig,
};
