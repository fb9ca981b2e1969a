//! HF's order, as a type.

/// Where a processor stands in HF's list (`GenerationMixin._get_logits_processor`, 5.23).
///
/// The variants are declared in the order of application, so that comparing two stages compares
/// their places. Processors HF does not have stand beside their nearest relative, and say so.
///
/// ```
/// use mlxgk_logits_processors::{LogitNormalization, LogitsProcessor, Stage, SuppressTokens};
///
/// assert_eq!(SuppressTokens::new([3]).stage(), Stage::SuppressTokens);
/// assert!(Stage::User > Stage::SuppressTokens && Stage::User < Stage::Temperature);
/// assert!(LogitNormalization.stage() > Stage::Watermark);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Classifier-free guidance; its second forward pass is a strategy's job, so no processor of
    /// this crate stands here.
    Guidance,
    /// Biases on token sequences, and this crate's single-token bias after them.
    SequenceBias,
    /// The penalty that favours the encoder's (or the prompt's) tokens.
    EncoderRepetitionPenalty,
    /// The repetition penalty, and after it this crate's frequency and presence penalties and DRY.
    RepetitionPenalty,
    /// The ban on repeated n-grams.
    NoRepeatNGram,
    /// The ban on the encoder's (or the prompt's) n-grams.
    EncoderNoRepeatNGram,
    /// Bad words.
    NoBadWords,
    /// No end before a total length.
    MinLength,
    /// No end before a number of new tokens.
    MinNewTokens,
    /// The caller's own function or trie, and constraints that work like it.
    PrefixConstrained,
    /// The first token.
    ForcedBos,
    /// The last token.
    ForcedEos,
    /// Removal of infinities and NaN.
    InfNanRemove,
    /// The growing push towards the end.
    ExponentialDecay,
    /// Suppressed tokens.
    SuppressTokens,
    /// Tokens suppressed at the beginning.
    SuppressTokensAtBegin,
    /// Tokens forced at given positions; HF had them here until it dropped them.
    ForceTokens,
    /// Processors HF does not make itself: a caller's own.
    User,
    /// Grammars, after all that could lift a ban of theirs.
    Grammar,
    /// Temperature, the first of the warpers, which HF adds only when sampling.
    Temperature,
    /// Top-H.
    TopH,
    /// Top-k.
    TopK,
    /// Top-p.
    TopP,
    /// Min-p.
    MinP,
    /// Locally typical.
    Typical,
    /// Epsilon cutoff.
    Epsilon,
    /// Eta cutoff.
    Eta,
    /// Watermarks.
    Watermark,
    /// Log-softmax, the last word.
    Normalization,
}
