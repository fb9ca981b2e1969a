//! Requests that run side by side and come and go: what a server needs.

use std::collections::BTreeMap;

use mlxgk_decoding_strategies::{ContinuousBatch, RowEvent, RowId, TokenLoop};
use mlxgk_generation_config::Warning;
use mlxgk_kv_cache::CacheOptions;

use crate::{
    Abilities, Ability, AssistedRequest, Error, Generation, Model, Piece, Result,
    output::Answer,
    plan::Plan,
    start::{join, start},
};

/// What a step made of one request.
///
/// ```
/// use mlx_genkit::{Batch, BatchOutcome, ComputeDtype, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let mut batch = Batch::new(&model);
/// let ids = [batch.join(Request::new("The fox"))?, batch.join(Request::new("The sea"))?];
/// let mut texts = [String::new(), String::new()];
/// for event in batch.step()? {
///     let at = ids.iter().position(|it| *it == event.id).unwrap();
///     if let BatchOutcome::Piece(piece) = event.outcome {
///         texts[at] += &piece.text;
///     }
/// }
/// println!("{texts:?}");
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BatchEvent {
    /// The number that [`Batch::join`] gave.
    pub id: usize,
    /// What became of it.
    pub outcome: BatchOutcome,
}

/// See [`BatchEvent`].
///
/// ```
/// use mlx_genkit::{Batch, BatchOutcome, ComputeDtype, GenerationConfig, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig { max_new_tokens: Some(2), ..Default::default() };
/// let mut batch = Batch::new(&model);
/// batch.join(Request::new("The sea is").config(config))?;
/// let (mut pieces, mut finished) = (0, 0);
/// while !batch.is_empty() {
///     for event in batch.step()? {
///         match event.outcome {
///             BatchOutcome::Piece(_) => pieces += 1,
///             BatchOutcome::Failed { error, .. } => eprintln!("{error}"),
///             BatchOutcome::Finished(generation) => finished += generation.sequences.len(),
///             _ => {}
///         }
///     }
/// }
/// assert_eq!((pieces, finished), (2, 1));
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum BatchOutcome {
    /// One of its sequences has one token more.
    Piece(Piece),
    /// One of its sequences cannot be continued and has ended. Nothing else is affected.
    Failed {
        /// Index of the sequence.
        sequence: usize,
        /// Why.
        error: Error,
    },
    /// All its sequences have ended; those that failed are left out. The last event of a request.
    Finished(Box<Generation>),
}

/// A batch that requests join and leave between steps.
///
/// What a request is answered does not depend on who shares its batch, and it is what
/// [`Model::generate`] would answer. Requests in greedy decoding and sampling share every pass; others
/// (see [`Ability::SharedPass`]) run in loops of their own between the others' steps.
///
/// ```
/// use mlx_genkit::{Batch, BatchOutcome, ComputeDtype, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let mut batch = Batch::new(&model);
/// let first = batch.join(Request::new("Once upon a time"))?;
/// assert_eq!(batch.step()?[0].id, first);
/// let second = batch.join(Request::new("The harbour"))?;
/// assert_eq!(batch.step()?.iter().map(|it| it.id).collect::<Vec<_>>(), [first, second]);
/// batch.leave(first);
/// while !batch.is_empty() {
///     for event in batch.step()? {
///         if let BatchOutcome::Finished(generation) = event.outcome {
///             println!("{}", generation.sequences[0].text);
///         }
///     }
/// }
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug)]
pub struct Batch<'a> {
    model: &'a Model,
    shared: ContinuousBatch<'a>,
    requests: BTreeMap<usize, Served<'a>>,
    /// Requests that share passes, by their first row.
    sharing: BTreeMap<RowId, usize>,
    joined: usize,
    /// How the requests that share passes keep their columns; unused while there are none.
    kept_as: CacheOptions,
}

struct Served<'a> {
    answer: Answer<'a>,
    tokens: Tokens<'a>,
}

/// Where a request's tokens come from.
enum Tokens<'a> {
    /// The shared rows from this one on.
    Shared(RowId),
    Own(Box<dyn TokenLoop + 'a>),
}

impl std::fmt::Debug for Served<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.answer.fmt(f)
    }
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new(model: &'a Model) -> Self {
        Self {
            model,
            shared: ContinuousBatch::default(),
            requests: BTreeMap::new(),
            sharing: BTreeMap::new(),
            joined: 0,
            kept_as: CacheOptions::new(),
        }
    }

    /// Lets a request take part. Returns its number. Its prompts are fed between the other requests'
    /// tokens, a chunk at a time; where it does not share their passes, at once.
    ///
    /// # Errors
    /// As [`Model::generate`]. The other requests are not affected.
    pub fn join(&mut self, request: impl Into<AssistedRequest<'a>>) -> Result<usize> {
        let plan = self.model.plan(request)?;
        let served = if self.can_share(&plan) {
            self.kept_as = plan.kept_as().clone();
            let (first, answer) = join(plan, &mut self.shared)?;
            self.sharing.insert(first, self.joined);
            Served { answer, tokens: Tokens::Shared(first) }
        } else {
            let (tokens, answer) = start(plan)?;
            Served { answer, tokens: Tokens::Own(tokens) }
        };
        let id = self.joined;
        self.joined += 1;
        self.requests.insert(id, served);
        Ok(id)
    }

    /// Whether a request can share passes: with those that do, if its cache keeps columns as theirs.
    /// Longrope reads a row differently next to a longer one, and so does a cache that begins to
    /// quantize at some column.
    fn can_share(&self, plan: &Plan<'_>) -> bool {
        let abilities = Abilities::of(plan.mode());
        let kept_as = plan.kept_as();
        (self.shared.is_empty() || &self.kept_as == kept_as)
            && kept_as.quantization.is_none_or(|it| it.start == 0)
            && abilities.has(Ability::SharedPass)
            && plan.resolved.config.use_cache != Some(false)
            && plan.soft_prompt.is_none()
            && plan.part.is_none()
            && self.model.decoder().original_context().is_none()
    }

    /// Advances every request. No events where none has a token yet.
    ///
    /// # Errors
    /// When the model fails, which ends all requests that share passes. A sequence that fails ends
    /// alone, as an event.
    pub fn step(&mut self) -> Result<Vec<BatchEvent>> {
        let mut events = Vec::new();
        let shared = self.shared.step().inspect_err(|_| {
            for id in std::mem::take(&mut self.sharing).into_values() {
                self.requests.remove(&id);
            }
        });
        for event in shared? {
            let Some((_, &id)) = self.sharing.range(..=event.row).next_back() else { continue };
            if let Some(served) = self.requests.get_mut(&id)
                && let Some(row) = tell(&mut served.answer, id, event, &mut events)
            {
                self.shared.leave(row);
            }
        }
        for (&id, served) in &mut self.requests {
            served.step(id, &mut events);
        }
        let ended = self.requests.extract_if(.., |_, it| !it.answer.is_running());
        for (id, Served { answer, tokens }) in ended.collect::<Vec<_>>() {
            let output = match tokens {
                Tokens::Own(tokens) => tokens.finish().map_err(Error::from),
                Tokens::Shared(first) => {
                    self.sharing.remove(&first);
                    Ok(self.shared.take(first))
                }
            };
            let outcome = match output.and_then(|it| answer.finish(it)) {
                Ok((generation, _)) => BatchOutcome::Finished(Box::new(generation)),
                Err(error) => BatchOutcome::Failed { sequence: 0, error },
            };
            events.push(BatchEvent { id, outcome });
        }
        Ok(events)
    }

    /// Takes a request out before its end; `false` where there is none of this number.
    pub fn leave(&mut self, id: usize) -> bool {
        let Some(served) = self.requests.remove(&id) else { return false };
        if let Tokens::Shared(first) = served.tokens {
            self.sharing.remove(&first);
            let rows = first.get()..first.get() + served.answer.rows() as u64;
            rows.map(RowId::new).for_each(|row| _ = self.shared.leave(row));
            self.shared.take(first);
        }
        true
    }

    /// The warnings about a request's configuration that HF would give; empty where there is none of this
    /// number.
    pub fn warnings(&self, id: usize) -> &[Warning] {
        self.requests.get(&id).map_or(&[], |it| it.answer.warnings())
    }

    /// How many requests are running or waiting.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether no request is running or waiting.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

impl Served<'_> {
    /// Advances a request that has a loop of its own.
    fn step(&mut self, id: usize, events: &mut Vec<BatchEvent>) {
        let Tokens::Own(tokens) = &mut self.tokens else { return };
        match tokens.step() {
            Some(Ok(step)) => {
                for event in step {
                    if let Some(row) = tell(&mut self.answer, id, event, events)
                        && let Tokens::Own(tokens) = &mut self.tokens
                    {
                        tokens.leave(row);
                    }
                }
            }
            Some(Err(e)) => {
                let error = Error::from(e);
                let failed = |sequence| {
                    let outcome = BatchOutcome::Failed { sequence, error: error.clone() };
                    BatchEvent { id, outcome }
                };
                events.extend(self.answer.fail_all().into_iter().map(failed));
            }
            None => self.answer.end(),
        }
    }
}

/// Adds what an event of a row means. Returns the row where it has to end because its text cannot be
/// decoded.
fn tell(
    answer: &mut Answer<'_>,
    id: usize,
    event: RowEvent,
    events: &mut Vec<BatchEvent>,
) -> Option<RowId> {
    let (row, sequence) = (event.row, answer.sequence(event.row));
    let (outcome, ends) = match answer.piece(row, event.outcome) {
        Ok(piece) => (BatchOutcome::Piece(piece?), None),
        Err(error) => (BatchOutcome::Failed { sequence, error }, Some(row)),
    };
    events.push(BatchEvent { id, outcome });
    ends
}
