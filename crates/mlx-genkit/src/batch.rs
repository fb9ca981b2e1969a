//! Requests that run side by side and come and go: what a server needs.

use std::collections::BTreeMap;

use mlxgk_decoding_strategies::{
    ContinuousBatch, DEFAULT_PREFILL_CHUNK, FinishReason, Joining, Keep,
};
use mlxgk_generation_config::GenerationMode;
use mlxgk_mlx_models::{NoHook, ResidualHook};

use crate::{
    Error, ErrorKind, Model, Request, Result,
    generate::{Job, uses_cache},
    healing::beyond,
    stream::RowText,
};

/// One request's next token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPiece {
    /// The number that [`Batch::join`] gave.
    pub id: usize,
    /// The token.
    pub token: u32,
    /// The text that became certain with it.
    pub text: String,
    /// Why the request is done; `None` while it goes on.
    pub finish_reason: Option<FinishReason>,
}

/// A batch that requests join and leave between steps.
///
/// An iterator over steps, each with a piece of every request; `None` while there is none. What a
/// request is answered does not depend on who shares its batch.
///
/// ```
/// use mlx_genkit::{Batch, ComputeDtype, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let mut batch = Batch::new(&model)?;
/// let first = batch.join(Request::new("Once upon a time"))?;
/// let step = batch.next().transpose()?.unwrap_or_default();
/// assert_eq!(step[0].id, first);
/// let second = batch.join(Request::new("The harbour"))?;
/// let step = batch.next().transpose()?.unwrap_or_default();
/// assert_eq!(step.iter().map(|it| it.id).collect::<Vec<_>>(), [first, second]);
/// batch.leave(first)?;
/// assert_eq!(batch.len(), 1);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
pub struct Batch<'a> {
    model: &'a Model,
    rows: ContinuousBatch<'a>,
    texts: BTreeMap<usize, RowText<'a>>,
}

impl<'a> Batch<'a> {
    /// An empty batch.
    ///
    /// # Errors
    /// When the model uses longrope, which reads a row differently beside a longer one.
    pub fn new(model: &'a Model) -> Result<Self> {
        Self::hooked(model, NoHook::leaked())
    }

    /// An empty batch with a hook, such as steering, that all its requests share.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn hooked(model: &'a Model, hook: &'a mut dyn ResidualHook) -> Result<Self> {
        let rows = ContinuousBatch::new(model.decoder(), hook)?;
        Ok(Self { model, rows, texts: BTreeMap::new() })
    }

    /// Feeds a request's prompt and lets it take part from the next step on. Returns its number.
    ///
    /// # Errors
    /// As [`generate`](crate::generate), and when the request has several prompts or sequences, beams,
    /// an assistant, guidance, a hook, a cache, or scores to keep. The other requests go on.
    pub fn join(&mut self, request: Request<'_>) -> Result<usize> {
        let job = Job::new(self.model, request)?;
        let plain =
            matches!(job.resolved.mode, GenerationMode::GreedySearch | GenerationMode::Sample);
        let alone = job.padded.rows().len() * job.copies == 1;
        let bare = job.guidance.is_none() && job.cache.is_none() && !job.hooked;
        if !uses_cache(&job.resolved) {
            let what = "`use_cache` is false, but a batch that requests join is one cache";
            return Err(Error::new(ErrorKind::Request, what));
        }
        if !(plain && alone && bare && job.keep == Keep::default()) {
            let what = "a batch takes requests of one prompt and one sequence, greedy or drawn, \
                        without guidance, a hook of their own, a cache or scores to keep";
            return Err(Error::new(ErrorKind::Request, what));
        }
        let chunk = job.resolved.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK);
        let prompt = job.padded.rows()[0].clone();
        let text = RowText::new(self.model, &prompt, beyond(&job.healed, 0), &job.trimmed)?;
        let (processors, rule, stopping) = (job.processors, job.rule, job.stopping);
        let id = self.rows.join(Joining { prompt, processors, rule, stopping }, chunk)?;
        self.texts.insert(id, text);
        Ok(id)
    }

    /// Takes a request out before its end; `false` where there is none of this number.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn leave(&mut self, id: usize) -> Result<bool> {
        self.texts.remove(&id);
        Ok(self.rows.leave(id)?)
    }

    /// How many requests are running.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether none is running.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl Iterator for Batch<'_> {
    type Item = Result<Vec<BatchPiece>>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = match self.rows.next()? {
            Ok(step) => step,
            Err(e) => return Some(Err(e.into())),
        };
        let pieces = step.into_iter().map(|event| {
            let ends = event.finish_reason.is_some();
            let text = match self.texts.get_mut(&event.id) {
                Some(text) => text.push(event.token, ends)?,
                None => String::new(),
            };
            if ends {
                self.texts.remove(&event.id);
            }
            let (id, token, finish_reason) = (event.id, event.token, event.finish_reason);
            Ok(BatchPiece { id, token, text, finish_reason })
        });
        Some(pieces.collect())
    }
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("rows", &self.rows).finish_non_exhaustive()
    }
}
