//! Guesses by the model's own heads for further tokens.

use mlx_rs::Array;
use mlxgk_kv_cache::KvCache;
use mlxgk_logits_processors::Context;
use mlxgk_mlx_models::MtpHeads;

use super::{CandidateGenerator, Candidates, DraftContext, FinalStates};
use crate::{Chooser, DEFAULT_PREFILL_CHUNK, Error, ErrorKind, Result, reader::last_position};

/// Guesses a token by each of the heads that a model has for further tokens (HF `MTPCandidateGenerator`).
///
/// The heads read what the model left after its final norm, column by column, so they guess once it has added
/// a token to the prompt. They read the whole text that the model read in this request, a chunk at a time.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     AssistedLoop, DecoderSession, FinalStates, LeftPadded, Limits, MtpDraft, RowGroup,
///     TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, MtpHeads};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/assisted/mtp-glm4-moe");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let heads = MtpHeads::load(folder, &model)?.expect("the folder has heads");
/// let (states, prompt) = (FinalStates::default(), [5, 9, 14]);
/// let prompts = LeftPadded::new(&[prompt.to_vec()], 0)?;
/// let session = DecoderSession::prefill(&model, &prompts, 64, states.clone())?;
/// let group = RowGroup::greedy(Limits { max_new_tokens: 5, eos: vec![] });
/// let draft = MtpDraft::new(&heads, states, prompt.len());
/// let mut it = AssistedLoop::new(session, draft, &prompt, group);
/// while it.step().transpose()?.is_some() {}
/// assert!(it.acceptance().guessed > 0 && it.into_parts().1.tokens.len() == 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MtpDraft<'a> {
    heads: &'a MtpHeads,
    states: FinalStates,
    prompt: usize,
    chunk: usize,
    /// One per head.
    caches: Vec<KvCache>,
    /// The column of the text that the caches begin with.
    begin: Option<usize>,
}

impl<'a> MtpDraft<'a> {
    /// Guesses after a prompt of `prompt` tokens, from what `states` saw the model leave: it has to be the last
    /// hook of all of the model's passes.
    pub fn new(heads: &'a MtpHeads, states: FinalStates, prompt: usize) -> Self {
        let (caches, chunk) = (heads.new_caches(), DEFAULT_PREFILL_CHUNK);
        Self { heads, states, prompt, chunk, caches, begin: None }
    }

    /// Lets the heads read at most about `columns` columns at once.
    #[must_use]
    pub fn chunk(self, columns: usize) -> Self {
        Self { chunk: columns.max(1), ..self }
    }

    /// Takes back what not all heads have read, and all but the first `most` columns. Returns how many are left.
    fn keep(&mut self, most: usize) -> Result<usize> {
        let held = self.caches.iter().map(KvCache::len).min().unwrap_or(0).min(most);
        for cache in &mut self.caches {
            cache.trim(cache.len() - held)?;
        }
        Ok(held)
    }

    fn states(&self, from: usize, to: usize) -> Result<Array> {
        self.states.between(from, to)?.ok_or_else(|| {
            let what = format!("what the model left in columns {from} to {to} was not kept");
            Error::new(ErrorKind::Model, what)
        })
    }
}

impl CandidateGenerator for MtpDraft<'_> {
    fn candidates(
        &mut self,
        draft: &mut DraftContext<'_, '_>,
        chooser: &mut Chooser,
    ) -> Result<Candidates> {
        let (tokens, heads) = (draft.context.tokens, self.heads.len());
        let mut guess = Candidates::default();
        let Some(begin) = self.begin.or_else(|| self.states.start()) else { return Ok(guess) };
        if tokens.len() <= self.prompt.max(begin + 1) || draft.max_checkable == 0 {
            return Ok(guess);
        }
        self.begin = Some(begin);
        let mut from = begin + self.keep(usize::MAX)?;
        // As long as all heads know the tokens they read.
        while from + self.chunk + heads <= tokens.len() && from + self.chunk + 1 < tokens.len() {
            let to = from + self.chunk;
            let mut states = self.states(from, to)?;
            for (head, cache) in self.caches.iter_mut().enumerate() {
                let ahead = &tokens[from + 1 + head..=to + head];
                states = self.heads.forward(head, ahead, &states, cache)?;
                cache.evaluate()?;
            }
            from = to;
        }
        let mut states = self.states(from, tokens.len() - 1)?;
        let (mut ahead, mut text) = (tokens[from + 1..].to_vec(), tokens.to_vec());
        let (mut scores, mut warped) = (Vec::new(), Vec::new());
        for (head, cache) in self.caches.iter_mut().enumerate() {
            states = self.heads.forward(head, &ahead, &states, cache)?;
            let logits = self.heads.logits(&last_position(&states)?)?;
            let logits = logits.try_as_slice::<f32>().map_err(|e| {
                Error::new(ErrorKind::Model, format!("the scores cannot be read: {e}"))
            })?;
            scores.clear();
            scores.extend_from_slice(logits);
            // The model may take a path on which the head would not be left without a token.
            if !draft.process(&text, &mut scores)?
                || scores.iter().all(|it| *it == f32::NEG_INFINITY)
            {
                break;
            }
            let context = Context { tokens: &text, ..draft.context };
            let token = if draft.wants_scores {
                chooser.choose_keeping(0, &context, &scores, &mut warped)?
            } else {
                chooser.choose(0, &context, &scores)?
            };
            // As in HF, what does not fit is guessed too: torch draws for it.
            if guess.tokens.len() < draft.max_checkable {
                guess.tokens.push(token);
                if draft.wants_scores {
                    guess.scores.extend_from_slice(&warped);
                }
            }
            text.push(token);
            ahead.push(token);
            ahead.remove(0);
        }
        // Further heads have read guesses in their last columns, which may not stand.
        let held = self.keep(tokens.len().saturating_sub(heads + begin))?;
        self.states.forget(begin + held);
        Ok(guess)
    }

    fn update(&mut self, _: usize, _: usize) {}
}
