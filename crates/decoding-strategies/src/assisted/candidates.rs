//! What the sources of guesses have in common.

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList};

use super::{Guide, nothing_left};
use crate::{Chooser, Result};

/// Guesses for the next tokens.
///
/// See the example of [`CandidateGenerator`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidates {
    /// The tokens, in order; may be none.
    pub tokens: Vec<u32>,
    /// The processed scores that each was chosen from, a vocabulary per token; empty where they were
    /// not chosen from scores, or nobody [asked](DraftContext::wants_scores) for them.
    pub scores: Vec<f32>,
}

/// Where the text stands when a guess is asked for.
///
/// See the example of [`PromptLookup`](crate::PromptLookup), which is given one.
#[derive(Debug)]
pub struct DraftContext<'a, 'm> {
    /// Prompt and new tokens.
    pub context: Context<'a>,
    /// How many tokens are worth guessing: with one more from the model the row is full.
    pub budget: usize,
    /// How many tokens the model can check in one pass.
    pub max_checkable: usize,
    /// Tokens that end the row.
    pub eos: &'a [u32],
    /// What the model's scores go through.
    pub processors: &'a ProcessorList,
    /// What the model's scores are moved away from before that, with guidance.
    pub guide: Option<&'a mut Guide<'m>>,
    /// Scores per position.
    pub vocab_size: usize,
    /// Whether the scores of the guesses are needed to judge them.
    pub wants_scores: bool,
}

impl DraftContext<'_, '_> {
    /// Makes of `scores` what guidance and processors make of the model's behind `tokens`. Returns whether
    /// any token is left; it is not an error where none is, since the model may take another path.
    pub(super) fn process(&mut self, tokens: &[u32], scores: &mut [f32]) -> Result<bool> {
        if let (Some(guide), Some(last)) = (&mut self.guide, tokens.last()) {
            guide.apply(std::slice::from_ref(last), scores)?;
        }
        let context = Context { tokens, ..self.context };
        Ok(!nothing_left(self.processors.process(&context, scores))?)
    }
}

/// Guesses tokens that a model may say next (HF `CandidateGenerator`).
///
/// ```
/// use mlxgk_decoding_strategies::{
///     AssistedLoop, CandidateGenerator, Candidates, Chooser, DecoderSession, DraftContext,
///     LeftPadded, Limits, Result, RowGroup, TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// /// Guesses that the last token comes again.
/// struct Again;
///
/// impl CandidateGenerator for Again {
///     fn candidates(
///         &mut self,
///         draft: &mut DraftContext<'_, '_>,
///         _: &mut Chooser,
///     ) -> Result<Candidates> {
///         let last = draft.context.tokens.last().copied();
///         Ok(Candidates { tokens: last.into_iter().collect(), scores: Vec::new() })
///     }
///
///     fn update(&mut self, _guessed: usize, _accepted: usize) {}
/// }
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9]], 0)?;
/// let session = DecoderSession::prefill(&model, &prompts, 64, NoHook)?;
/// let group = RowGroup::greedy(Limits { max_new_tokens: 4, eos: vec![] });
/// let mut it = AssistedLoop::new(session, Again, &[5, 9], group);
/// while it.step().transpose()?.is_some() {}
/// assert!(it.acceptance().guessed > 0 && it.into_parts().1.tokens.len() == 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait CandidateGenerator {
    /// Guesses at most `draft.max_checkable` tokens; those beyond `draft.budget` are lost. `chooser`
    /// warps and draws where tokens are drawn.
    ///
    /// # Errors
    /// When a draft model fails, or nothing can be chosen from its scores.
    fn candidates(
        &mut self,
        draft: &mut DraftContext<'_, '_>,
        chooser: &mut Chooser,
    ) -> Result<Candidates>;

    /// Learns that `accepted` of the last `guessed` tokens were accepted.
    fn update(&mut self, guessed: usize, accepted: usize);
}

impl<G: CandidateGenerator + ?Sized> CandidateGenerator for Box<G> {
    fn candidates(
        &mut self,
        draft: &mut DraftContext<'_, '_>,
        chooser: &mut Chooser,
    ) -> Result<Candidates> {
        (**self).candidates(draft, chooser)
    }

    fn update(&mut self, guessed: usize, accepted: usize) {
        (**self).update(guessed, accepted);
    }
}
