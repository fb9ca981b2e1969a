//! A batch whose rows come and go.

use mlx_rs::{
    Array,
    ops::concatenate,
    transforms::{async_eval, eval},
};
use mlxgk_kv_cache::KvCache;
use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList};
use mlxgk_mlx_models::{Decoder, ResidualHook};

use crate::{
    DecoderSession, Error, ErrorKind, FinishReason, LeftPadded, Result, Rule, Stopping,
    budget::within_budget, session::Pending,
};

/// A row to be: a prompt and how it is continued.
#[derive(Debug)]
pub struct Joining {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// What its scores go through.
    pub processors: ProcessorList,
    /// How its tokens are chosen, with a random stream of its own.
    pub rule: Rule,
    /// When it ends.
    pub stopping: Stopping,
}

/// One row's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The number that [`ContinuousBatch::join`] gave.
    pub id: usize,
    /// The token.
    pub token: u32,
    /// Why the row ended with it; `None` while it goes on.
    pub finish_reason: Option<FinishReason>,
}

/// A batch that requests join and leave between steps: what a server runs.
///
/// An iterator over steps, each with a token of every row; it gives `None` while the batch is empty
/// and goes on when something has joined. A row's tokens do not depend on who shares its batch.
pub struct ContinuousBatch<'a> {
    model: &'a Decoder,
    hook: &'a mut dyn ResidualHook,
    /// Of the rows, in their order; none while there are none.
    state: Option<(KvCache, Pending)>,
    rows: Vec<Running>,
    joined: usize,
}

struct Running {
    id: usize,
    text: Vec<u32>,
    prompt_len: usize,
    processors: ProcessorList,
    rule: Rule,
    stopping: Stopping,
}

impl<'a> ContinuousBatch<'a> {
    /// An empty batch. The hook sees every pass: a joining row's prompt alone, then all rows.
    ///
    /// # Errors
    /// When the model uses longrope, which reads all rows of a batch as its longest row demands.
    pub fn new(model: &'a Decoder, hook: &'a mut dyn ResidualHook) -> Result<Self> {
        if model.original_context().is_some() {
            let what = "a model with longrope reads a row differently beside a longer one, so rows \
                        cannot join and leave";
            return Err(Error::new(ErrorKind::Model, what));
        }
        Ok(Self { model, hook, state: None, rows: Vec::new(), joined: 0 })
    }

    /// How many rows are running.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing is running.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Feeds a prompt, in passes of at most `chunk` tokens, and lets it take part from the next step
    /// on. Returns its number.
    ///
    /// # Errors
    /// When the prompt is empty, a token is outside the vocabulary, or the model fails. The others
    /// are not affected.
    pub fn join(&mut self, row: Joining, chunk: usize) -> Result<usize> {
        let prompt = LeftPadded::new(std::slice::from_ref(&row.prompt), 0)?;
        let session = DecoderSession::prefill(self.model, &prompt, chunk, &mut *self.hook)?;
        let (cache, logits) = session.into_state();
        let state = match &self.state {
            None => (cache, logits),
            Some((all, others)) => {
                let mut all = all.fork();
                all.join(&cache)?;
                (all, Pending(concatenate(&[&others.0, &logits.0], 0)?))
            }
        };
        eval(state.0.arrays().chain([&state.1.0]))?;
        self.state = Some(state);
        let id = self.joined;
        self.joined += 1;
        let Joining { prompt, processors, rule, stopping } = row;
        let prompt_len = prompt.len();
        self.rows.push(Running { id, text: prompt, prompt_len, processors, rule, stopping });
        Ok(id)
    }

    /// Takes a row out, whether or not it has ended; `false` where there is none of this number.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn leave(&mut self, id: usize) -> Result<bool> {
        let Some(place) = self.rows.iter().position(|it| it.id == id) else { return Ok(false) };
        let kept: Vec<usize> = (0..self.rows.len()).filter(|&it| it != place).collect();
        self.keep(&kept)?;
        Ok(true)
    }

    /// Keeps the rows at these places.
    fn keep(&mut self, places: &[usize]) -> Result<()> {
        match &mut self.state {
            _ if places.len() == self.rows.len() => {}
            Some((cache, logits)) if !places.is_empty() => {
                cache.select(places)?;
                let indices: Vec<i32> = places.iter().map(|&it| it as i32).collect();
                let indices = Array::from_slice(&indices, &[indices.len() as i32]);
                logits.0 = logits.0.take_axis(&indices, 0)?;
            }
            _ => self.state = None,
        }
        let mut place = 0;
        self.rows.retain(|_| {
            place += 1;
            places.contains(&(place - 1))
        });
        Ok(())
    }

    fn step(&mut self) -> Result<Vec<Event>> {
        let Some((_, logits)) = &mut self.state else { return Ok(Vec::new()) };
        let vocab = self.model.vocab_size();
        let scores = logits.read()?;
        let rows = self.rows.iter_mut().zip(scores.chunks_exact(vocab));
        let events = rows.map(|(row, scores)| row.choose(scores)).collect::<Result<Vec<_>>>()?;
        let going = |it: &usize| events[*it].finish_reason.is_none();
        let places: Vec<usize> = (0..events.len()).filter(going).collect();
        self.keep(&places)?;
        if let Some((cache, logits)) = &mut self.state {
            let fed: Vec<u32> = places.iter().map(|&it| events[it].token).collect();
            let tokens: Vec<&[u32]> = fed.chunks(1).collect();
            let model = self.model;
            logits.0 = within_budget(cache, self.hook, 1, &mut |cache, hook| {
                let hidden = model.hidden(&tokens, cache, hook)?;
                Ok(model.logits(&hidden)?.squeeze_axes(&[1])?)
            })?;
            async_eval([&logits.0])?;
        }
        Ok(events)
    }
}

impl Running {
    fn choose(&mut self, scores: &[f32]) -> Result<Event> {
        let context = Context::new(&self.text, self.prompt_len);
        let token = if self.processors.is_empty() {
            self.rule.choose(0, &context, scores)?
        } else {
            let mut scores = scores.to_vec();
            self.processors.process(&context, &mut scores)?;
            self.rule.choose(0, &context, &scores)?
        };
        self.text.push(token);
        let finish_reason = self.stopping.check(&Context::new(&self.text, self.prompt_len))?;
        Ok(Event { id: self.id, token, finish_reason })
    }
}

impl Iterator for ContinuousBatch<'_> {
    type Item = Result<Vec<Event>>;

    /// The next step. After an error the batch is empty.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rows.is_empty() {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.rows.clear();
            self.state = None;
        }
        Some(step)
    }
}

impl std::fmt::Debug for ContinuousBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContinuousBatch").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}
