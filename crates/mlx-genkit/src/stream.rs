//! A request's tokens as they are made.

use std::collections::VecDeque;

use mlxgk_decoding_strategies::TokenLoop;
use mlxgk_generation_config::Warning;
use mlxgk_kv_cache::KvCache;

use crate::{
    Error, ErrorKind, Generation, Piece, Result, output::Answer, plan::Plan, start::start,
};

/// A request being served: an iterator over its tokens.
///
/// It ends with the first error, whichever sequence that is about. Dropping it waits for the pass that
/// the device is at work on.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let mut stream = model.stream(Request::new("Once upon a time"))?;
/// assert_eq!(stream.max_tokens(), 20); // HF's default
/// let mut text = String::new();
/// for piece in stream.by_ref().take(5) {
///     text += &piece?.text;
/// }
/// // What was made so far is a whole answer of five tokens.
/// let sequence = stream.finish()?.sequences.remove(0);
/// assert_eq!(sequence.tokens.len(), 5);
/// assert!(sequence.text.starts_with(&text));
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
pub struct TokenStream<'a> {
    tokens: Box<dyn TokenLoop + 'a>,
    answer: Answer<'a>,
    ready: VecDeque<Piece>,
    max_new_tokens: usize,
    prefilled: bool,
    done: bool,
}

impl<'a> TokenStream<'a> {
    pub(crate) fn start(plan: Plan<'a>) -> Result<Self> {
        let max_new_tokens = plan.group.limits().max_new_tokens;
        let (tokens, answer) = start(plan)?;
        let (ready, prefilled, done) = (VecDeque::new(), false, false);
        Ok(Self { tokens, answer, ready, max_new_tokens, prefilled, done })
    }

    /// The warnings about the configuration that HF would give; known before the first token.
    pub fn warnings(&self) -> &[Warning] {
        self.answer.warnings()
    }

    /// How many sequences the request makes.
    pub fn num_sequences(&self) -> usize {
        self.answer.rows()
    }

    /// New tokens at most, over all sequences; fewer where a sequence ends early.
    pub fn max_tokens(&self) -> usize {
        self.max_new_tokens.saturating_mul(self.num_sequences())
    }

    /// Waits until the prompt has gone through the model; the first call of `next` does so by itself.
    ///
    /// # Errors
    /// When the model fails.
    pub fn prefill(&mut self) -> Result<()> {
        if !self.prefilled {
            self.tokens.wait()?;
            self.answer.note_prefilled();
            self.prefilled = true;
        }
        Ok(())
    }

    /// Gathers the sequences. Those that have not ended count as cut off by length.
    ///
    /// # Errors
    /// When the tokens cannot be decoded, or a search found too few sequences.
    pub fn finish(self) -> Result<Generation> {
        Ok(self.finished()?.0)
    }

    /// The sequences, and the cache where there is one to resume.
    pub(crate) fn finished(self) -> Result<(Generation, Option<KvCache>)> {
        self.answer.finish(self.tokens.finish()?)
    }

    /// As [`finish`](Self::finish), and gives back the cache with all that the model was fed, to be
    /// resumed in [`Request::cache`](crate::Request::cache).
    ///
    /// # Errors
    /// As [`finish`](Self::finish), and when the request is one whose cache cannot be resumed: one with
    /// several sequences, guidance or contrastive search.
    pub fn finish_with_cache(self) -> Result<(Generation, KvCache)> {
        with_cache(self.finished()?)
    }

    /// Advances every row; `false` once none runs.
    fn advance(&mut self) -> Result<bool> {
        self.prefill()?;
        let Some(events) = self.tokens.step().transpose()? else { return Ok(false) };
        for event in events {
            self.ready.extend(self.answer.piece(event.row, event.outcome)?);
        }
        Ok(true)
    }

    /// Runs the request to its end; the pieces are dropped.
    pub(crate) fn run_out(&mut self) -> Result<()> {
        while self.advance()? {
            self.ready.clear();
        }
        Ok(())
    }
}

/// What a request came to, with the cache that it must have left.
pub(crate) fn with_cache(
    (generation, cache): (Generation, Option<KvCache>),
) -> Result<(Generation, KvCache)> {
    let what = "a request with several sequences, guidance or contrastive search leaves no cache that can \
                be resumed";
    let cache = cache.ok_or_else(|| Error::new(ErrorKind::Request, what))?;
    Ok((generation, cache))
}

impl Iterator for TokenStream<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.done {
            match self.advance() {
                Ok(runs) => self.done = !runs,
                Err(e) => {
                    self.done = true;
                    return Some(Err(e));
                }
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

impl std::fmt::Debug for TokenStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenStream").field("answer", &self.answer).finish_non_exhaustive()
    }
}
