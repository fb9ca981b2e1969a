//! A draft model with another tokenizer: two vocabularies, brought together by what their tokens spell.
//!
//! The draft reads the text in its own tokens and guesses among those that the model has, too (Timor et al.,
//! [Lossless speculative decoding for heterogeneous vocabularies](https://arxiv.org/abs/2502.05202), token-level
//! intersection). So a guess comes with scores over the model's vocabulary, and is judged like any other.

use std::collections::HashMap;

use mlxgk_decoding_strategies::{
    DecoderSession, Error as LoopError, ErrorKind as LoopErrorKind, LanguageModel,
    Result as LoopResult, Speculative,
};
use mlxgk_tokenizer_bridge::Tokenizer;

use crate::{Error, ErrorKind, Model, Result};

/// What the tokens of a model are among those of its draft model.
pub(crate) struct Translation<'a> {
    model: &'a Tokenizer,
    draft: &'a Tokenizer,
    vocab: usize,
    draft_vocab: usize,
    /// Tokens that both have, the model's id first, each once.
    shared: Vec<(u32, u32)>,
    /// By the model's id, where the draft has the token.
    of_model: HashMap<u32, u32>,
}

impl<'a> Translation<'a> {
    /// Compares two vocabularies.
    ///
    /// # Errors
    /// When a model has no tokenizer, or nothing is in both.
    pub(crate) fn new(model: &'a Model, draft: &'a Model) -> Result<Self> {
        let (ours, theirs) = (model.tokenizer()?, draft.tokenizer()?);
        let (vocab, draft_vocab) = (model.decoder().vocab_size(), draft.decoder().vocab_size());
        let mut it = Self {
            model: ours,
            draft: theirs,
            vocab,
            draft_vocab,
            shared: Vec::new(),
            of_model: HashMap::new(),
        };
        let mut spelled: HashMap<&[u8], u32> = HashMap::new();
        for id in ids(theirs, draft_vocab) {
            if let Some(bytes) = theirs.texts().bytes(id).filter(|it| !it.is_empty()) {
                spelled.entry(bytes).or_insert(id);
            }
        }
        let mut guessed = vec![false; draft_vocab];
        for id in ids(ours, vocab) {
            let other = match ours.texts().bytes(id) {
                Some(bytes) => spelled.get(bytes).copied(),
                None => it.special(id),
            };
            let Some(other) = other else { continue };
            it.of_model.insert(id, other);
            if !std::mem::replace(&mut guessed[other as usize], true) {
                it.shared.push((id, other));
            }
        }
        if it.shared.is_empty() {
            let what = format!(
                "{} cannot assist {}: no token of one is a token of the other",
                draft.name(),
                model.name()
            );
            return Err(Error::new(ErrorKind::Request, what));
        }
        Ok(it)
    }

    /// The draft's special token of the same name.
    fn special(&self, id: u32) -> Option<u32> {
        let other = self.draft.token_to_id(&self.model.id_to_token(id)?)?;
        let is_special = self.model.is_special(id) && self.draft.is_special(other);
        (is_special && (other as usize) < self.draft_vocab).then_some(other)
    }

    /// The prompt in the draft's tokens, at least one.
    ///
    /// # Errors
    /// When a tokenizer fails.
    pub(crate) fn prompt(&self, prompt: &[u32]) -> Result<Vec<u32>> {
        let ids = self.draft.encode(&self.model.decode(prompt, true)?, true)?;
        Ok(self.within(ids))
    }

    /// A further token in the draft's tokens, at least one. One that the draft cannot spell is read as
    /// another: the draft then guesses worse, and the model says the same.
    fn continued(&self, id: u32) -> Vec<u32> {
        if let Some(&other) = self.of_model.get(&id) {
            return vec![other];
        }
        let text = match self.model.texts().bytes(id) {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => self.model.id_to_token(id).unwrap_or_default(),
        };
        self.within(self.draft.encode_continuation(&text).unwrap_or_default())
    }

    /// The ids that the draft model knows, or where there are none, some token.
    fn within(&self, mut ids: Vec<u32>) -> Vec<u32> {
        ids.retain(|&id| (id as usize) < self.draft_vocab);
        if ids.is_empty() {
            ids.extend(self.shared.first().map(|(_, other)| other));
        }
        ids
    }
}

/// The ids that have both a token and a score.
fn ids(tokenizer: &Tokenizer, vocab: usize) -> std::ops::Range<u32> {
    0..tokenizer.texts().len().min(vocab) as u32
}

/// A draft model in the tokens of the model that it drafts for. Tokens that the draft has not have no
/// probability.
pub(crate) struct Translated<'a> {
    draft: DecoderSession<'a>,
    translation: Translation<'a>,
    /// How many of the draft's tokens each token behind the prompt is.
    fed: Vec<usize>,
    /// For each token of the last feed, the row of the draft's scores behind it.
    rows: Vec<usize>,
    scores: Vec<f32>,
}

impl<'a> Translated<'a> {
    /// A draft that has been fed the [prompt](Translation::prompt).
    pub(crate) fn new(draft: DecoderSession<'a>, translation: Translation<'a>) -> Self {
        Self { draft, translation, fed: Vec::new(), rows: vec![0], scores: Vec::new() }
    }
}

impl LanguageModel for Translated<'_> {
    fn vocab_size(&self) -> usize {
        self.translation.vocab
    }

    fn feed(&mut self, tokens: &[u32]) -> LoopResult<()> {
        self.feed_several(tokens)
    }

    fn scores(&mut self) -> LoopResult<&[f32]> {
        let Translation { vocab, draft_vocab, shared, .. } = &self.translation;
        let all = self.draft.scores()?;
        self.scores.clear();
        self.scores.resize(self.rows.len() * vocab, f32::NEG_INFINITY);
        for (scores, row) in self.scores.chunks_exact_mut(*vocab).zip(&self.rows) {
            let theirs = &all[row * draft_vocab..][..*draft_vocab];
            for &(id, other) in shared {
                scores[id as usize] = theirs[other as usize];
            }
        }
        Ok(&self.scores)
    }
}

impl Speculative for Translated<'_> {
    fn feed_several(&mut self, tokens: &[u32]) -> LoopResult<()> {
        let mut ids = Vec::new();
        self.rows.clear();
        for &token in tokens {
            let own = self.translation.continued(token);
            self.fed.push(own.len());
            ids.extend(own);
            self.rows.push(ids.len() - 1);
        }
        self.draft.feed_several(&ids)
    }

    fn roll_back(&mut self, count: usize) -> LoopResult<()> {
        let Some(kept) = self.fed.len().checked_sub(count) else {
            let what = "a draft with another tokenizer cannot go back into the prompt";
            return Err(LoopError::new(LoopErrorKind::Prompt, what));
        };
        let ids: usize = self.fed.drain(kept..).sum();
        self.draft.roll_back(ids)
    }

    fn room(&self) -> usize {
        self.draft.room()
    }
}
