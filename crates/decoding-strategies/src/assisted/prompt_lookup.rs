//! Guesses from the text itself.

use mlxgk_logits_processors::Context;

use super::{CandidateGenerator, Candidates, DraftContext};
use crate::{Chooser, Error, ErrorKind, Result};

/// Guesses that what followed the last words earlier will follow them again (HF
/// `PromptLookupCandidateGenerator`; Saxena, prompt lookup decoding). Costs no model; pays where
/// answers quote their prompt.
///
/// ```
/// use mlxgk_decoding_strategies::{CandidateGenerator, DraftContext, PromptLookup, Chooser};
/// use mlxgk_logits_processors::{Context, ProcessorList};
///
/// let (context, processors) = (Context::new(&[5, 6, 7, 8, 9, 5, 6], 7), ProcessorList::default());
/// let mut draft = DraftContext {
///     context,
///     budget: 10,
///     max_checkable: 10,
///     eos: &[],
///     processors: &processors,
///     guide: None,
///     vocab_size: 20,
///     wants_scores: false,
/// };
/// let guess = PromptLookup::new(3, 2)?.candidates(&mut draft, &mut Chooser::Greedy)?;
/// assert_eq!(guess.tokens, [7, 8, 9]);
/// # Ok::<(), mlxgk_decoding_strategies::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PromptLookup {
    num_tokens: usize,
    max_ngram: usize,
}

impl PromptLookup {
    /// Guesses up to `num_tokens` tokens after an earlier occurrence of the last `max_ngram` tokens,
    /// or of fewer where those do not occur.
    ///
    /// # Errors
    /// When either is 0.
    pub fn new(num_tokens: usize, max_ngram: usize) -> Result<Self> {
        if num_tokens == 0 || max_ngram == 0 {
            let what = "prompt lookup needs `prompt_lookup_num_tokens` and \
                        `max_matching_ngram_size` of at least 1";
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        Ok(Self { num_tokens, max_ngram })
    }

    /// Continuations of earlier occurrences: of longer endings first, then from the left.
    fn matches<'a>(&self, text: &'a [u32]) -> impl Iterator<Item = &'a [u32]> + use<'a> {
        let (most, count) = (self.max_ngram.min(text.len().saturating_sub(1)), self.num_tokens);
        (1..=most).rev().flat_map(move |n| {
            let ending = &text[text.len() - n..];
            text[..text.len() - 1].windows(n).enumerate().filter_map(move |(at, window)| {
                let start = at + n;
                (window == ending)
                    .then(|| &text[start..text.len().min(start.saturating_add(count))])
            })
        })
    }
}

impl CandidateGenerator for PromptLookup {
    fn candidates(
        &mut self,
        draft: &mut DraftContext<'_, '_>,
        chooser: &mut Chooser,
    ) -> Result<Candidates> {
        if draft.budget == 0 {
            return Ok(Candidates::default());
        }
        for found in self.matches(draft.context.tokens) {
            // HF checks what does not fit too, and torch draws for it: so the length is no bound.
            let found = &found[..found.len().min(draft.max_checkable)];
            let allowed = allowed(found, draft, chooser)?;
            if allowed == 0 && !found.is_empty() {
                continue;
            }
            let end = found[..allowed].iter().position(|it| draft.eos.contains(it));
            let tokens = found[..end.unwrap_or(allowed)].to_vec();
            return Ok(Candidates { tokens, scores: Vec::new() });
        }
        Ok(Candidates::default())
    }

    fn update(&mut self, _: usize, _: usize) {}
}

/// How many of the tokens may follow one another: HF runs processors and warpers on scores
/// that are all 1 and looks for bans. Where a penalty lowers earlier tokens, a top-k bans them.
fn allowed(
    tokens: &[u32],
    draft: &mut DraftContext<'_, '_>,
    chooser: &mut Chooser,
) -> Result<usize> {
    let is_free = draft.processors.is_empty() && matches!(chooser, Chooser::Greedy);
    if is_free && draft.guide.is_none() {
        return Ok(tokens.len());
    }
    let mut text = draft.context.tokens.to_vec();
    let mut scores = Vec::with_capacity(draft.vocab_size);
    for (place, &token) in tokens.iter().enumerate() {
        scores.clear();
        scores.resize(draft.vocab_size, 1.0f32);
        if !draft.process(&text, &mut scores)? {
            return Ok(place);
        }
        chooser.warp(&Context { tokens: &text, ..draft.context }, &mut scores)?;
        if matches!(scores[token as usize], f32::NEG_INFINITY | f32::MIN) {
            return Ok(place);
        }
        text.push(token);
    }
    Ok(tokens.len())
}
