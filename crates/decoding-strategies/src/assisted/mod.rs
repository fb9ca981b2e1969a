//! Assisted decoding: something cheap guesses several tokens ahead, the model checks them in one pass.
//!
//! The pieces: a [`CandidateGenerator`] guesses, [`PromptLookup`] by finding the last words earlier
//! in the text, [`DraftModel`] by asking a smaller model, [`MtpDraft`] by the model's own heads for
//! further tokens; [`AssistedLoop`] checks; a [`Speculative`] model is one that can take several
//! tokens at once and take them back.
//!
//! The outcome is the model's own. Greedily, a guess is accepted as long as it is what the model would
//! have chosen. Drawn from a draft model's distribution `q`, it is accepted with probability
//! `min(1, p / q)`, and where one is not, the token is drawn from the rest of `p` over `q`: so each
//! token is distributed as `p`, the model's own (Leviathan et al., [Fast inference from transformers
//! via speculative decoding](https://arxiv.org/abs/2211.17192), algorithm 1).

mod assisted_loop;
mod candidates;
mod draft_model;
mod final_states;
mod guide;
mod mtp_draft;
mod prompt_lookup;
mod speculative_sampler;

use mlxgk_logits_processors::{ErrorKind, Result as Processed};

use crate::{LanguageModel, Result};

pub use self::assisted_loop::{Acceptance, AssistedLoop};
pub use self::candidates::{CandidateGenerator, Candidates, DraftContext};
pub use self::draft_model::{AssistantOptions, DraftModel, Schedule};
pub use self::final_states::FinalStates;
pub use self::guide::Guide;
pub use self::mtp_draft::MtpDraft;
pub use self::prompt_lookup::PromptLookup;

/// A model with one row that takes several tokens at once, and takes them back.
///
/// ```
/// use mlxgk_decoding_strategies::{DecoderSession, LanguageModel, LeftPadded, Speculative};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9]], 0)?;
/// let mut session = DecoderSession::prefill(&model, &prompts, 64, NoHook)?;
/// session.feed_several(&[14, 7, 30])?;
/// assert_eq!(session.scores()?.len(), 3 * model.vocab_size());
/// session.roll_back(2)?; // the second guess was wrong, and with it the third
/// assert_eq!(session.cache().tokens(0), [5, 9, 14]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Speculative: LanguageModel {
    /// Appends `tokens` to the row. [`scores`](LanguageModel::scores) then holds one row of scores
    /// for each of them: what follows it.
    ///
    /// # Errors
    /// When there is no token, one is outside the vocabulary, or the model fails.
    fn feed_several(&mut self, tokens: &[u32]) -> Result<()>;

    /// Forgets the last `count` tokens, as if they had never been fed. The scores are void until
    /// something is fed again.
    ///
    /// # Errors
    /// When the model no longer has what would come back into view.
    fn roll_back(&mut self, count: usize) -> Result<()>;

    /// How many tokens can be fed without changing how earlier ones are read. Most models have no
    /// such limit; one with longrope reads all of a text again when it outgrows the original context,
    /// and a cache may quantize what it holds at some column.
    fn room(&self) -> usize {
        usize::MAX
    }
}

/// Whether a draft has nothing to continue with, which is not an error: the model may take another
/// path.
fn nothing_left(processed: Processed<()>) -> Result<bool> {
    match processed {
        Ok(()) => Ok(false),
        Err(e) if e.kind() == ErrorKind::NoTokenAllowed => Ok(true),
        Err(e) => Err(e.into()),
    }
}
