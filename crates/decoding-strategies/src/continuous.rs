//! A batch whose rows come and go.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mlxgk_mlx_models::{ResidualHook, RowHooks, SharedHook};

use crate::{
    DecoderSession, Error, ErrorKind, LeftPadded, LoopOutput, Prefill, Result, RowEvent, RowGroup,
    RowId, RowOutcome, SampleLoop, TokenLoop,
};

/// Prompt tokens fed between two tokens of running rows, where nothing smaller is asked for: enough to
/// use the device well, and no more, since the rows wait for them. Blocks of a prefix store divide it.
pub const JOIN_CHUNK: usize = 256;

/// A batch that requests join and leave between steps: what a server runs.
///
/// It is the [`SampleLoop`] with a queue in front: between two tokens of the running rows at most one
/// chunk of a waiting prompt is fed. A row's tokens do not depend on who shares its batch.
///
/// ```
/// use mlxgk_decoding_strategies::{ContinuousBatch, LeftPadded, Limits, Prefill, RowGroup};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut batch = ContinuousBatch::default();
/// let mut requests = Vec::new();
/// for (prompt, max_new_tokens) in [(vec![5, 9, 14], 4), (vec![7], 2)] {
///     let prompts = LeftPadded::new(&[prompt], 0)?;
///     let (first, hook) = (batch.reserve(1), batch.hook());
///     let mut prefill = Prefill::new(&model, &prompts, hook);
///     prefill.name_rows(first, 1)?;
///     let group = RowGroup::greedy(Limits { max_new_tokens, eos: vec![] });
///     batch.join(first, prefill, &prompts, 1, group)?;
///     requests.push(first);
///     batch.step()?; // the first request is under way when the second joins
/// }
/// while !batch.is_empty() {
///     batch.step()?;
/// }
/// let lengths: Vec<_> = requests.iter().map(|it| batch.take(*it).rows[0].tokens.len()).collect();
/// assert_eq!(lengths, [4, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ContinuousBatch<'a> {
    rows: SampleLoop<DecoderSession<'a>>,
    waiting: VecDeque<Joining<'a>>,
    hooks: Arc<Mutex<RowHooks<'a>>>,
    /// The ids of requests with hooks, by their first.
    hooked: BTreeMap<RowId, Range<u64>>,
    /// Those of requests that were taken out, as long as the cache may still hold rows of theirs.
    gone: Vec<Range<u64>>,
}

/// A request that waits for its prompts to be fed.
#[derive(Debug)]
struct Joining<'a> {
    first: RowId,
    prefill: Prefill<'a>,
    copies: usize,
    prompts: LeftPadded,
    group: RowGroup,
    /// Rows that left before they could join.
    left: Vec<RowId>,
}

impl Joining<'_> {
    fn ids(&self) -> impl Iterator<Item = RowId> + use<> {
        let (first, count) = (self.first.get(), self.prompts.rows().len() as u64);
        (first..first + count).map(RowId::new)
    }
}

impl Default for ContinuousBatch<'_> {
    fn default() -> Self {
        Self {
            rows: SampleLoop::empty(),
            waiting: VecDeque::new(),
            hooks: Arc::default(),
            hooked: BTreeMap::new(),
            gone: Vec::new(),
        }
    }
}

impl<'a> ContinuousBatch<'a> {
    /// How many rows are running or waiting.
    pub fn len(&self) -> usize {
        let waiting = self.waiting.iter().map(|it| it.prompts.rows().len() - it.left.len());
        self.rows.running() + waiting.sum::<usize>()
    }

    /// Whether no row is running or waiting.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids for rows that are to join, as many as `prefill` will have; the first of them.
    pub fn reserve(&mut self, count: usize) -> RowId {
        self.rows.reserve(count)
    }

    /// The hook that every [`Prefill`] of this batch has to run under: it gives each row to its own.
    pub fn hook(&self) -> impl ResidualHook + use<'a> {
        Arc::clone(&self.hooks)
    }

    /// Registers the hook of a request whose rows have `count` ids from `first` on; before it joins.
    pub fn register(&mut self, first: RowId, count: usize, hook: impl ResidualHook + 'a) {
        let hook: SharedHook<'a> = Arc::new(Mutex::new(hook));
        let ids = first.get()..first.get() + count as u64;
        let mut hooks = locked(&self.hooks);
        ids.clone().for_each(|id| hooks.insert(RowId::new(id), Arc::clone(&hook)));
        self.hooked.insert(first, ids);
    }

    /// Forgets the hooks of requests that were taken out, once the cache holds none of their rows.
    fn forget_hooks(&mut self) {
        let held = self.rows.model().map_or_else(Vec::new, |it| it.cache().row_ids());
        let mut hooks = locked(&self.hooks);
        self.gone.retain(|ids| {
            let is_held = held.iter().any(|it| ids.contains(&it.get()));
            if !is_held {
                ids.clone().for_each(|id| _ = hooks.remove(RowId::new(id)));
            }
            is_held
        });
    }

    /// Puts a request into the queue, under ids that were [reserved](Self::reserve). `prefill` reads
    /// its prompts (after them, with guidance, those that it is guided away from), each of which is
    /// then continued by `copies` rows.
    ///
    /// # Errors
    /// When the model uses longrope, which reads all rows of a batch as its longest row demands.
    pub fn join(
        &mut self,
        first: RowId,
        mut prefill: Prefill<'a>,
        prompts: &LeftPadded,
        copies: usize,
        group: RowGroup,
    ) -> Result<()> {
        if prefill.model().original_context().is_some() {
            let what = "a model with longrope reads a row differently next to a longer one, so rows \
                        cannot join and leave";
            return Err(Error::new(ErrorKind::Model, what));
        }
        prefill.name_rows(first, copies)?;
        let (prompts, left) = (prompts.repeat(copies), Vec::new());
        self.waiting.push_back(Joining { first, prefill, copies, prompts, group, left });
        Ok(())
    }

    /// Feeds a chunk of a waiting prompt, and advances every running row by a token. No events where
    /// nothing is running yet, or at all.
    ///
    /// # Errors
    /// When the model fails; the batch is then empty. A row that fails ends alone, as an event.
    pub fn step(&mut self) -> Result<Vec<RowEvent>> {
        if !self.gone.is_empty() {
            self.forget_hooks();
        }
        let mut events = self.admit();
        match self.rows.step() {
            Some(Err(e)) => {
                self.waiting.clear();
                return Err(e);
            }
            Some(Ok(step)) => events.extend(step),
            None => {}
        }
        self.rows.release();
        Ok(events)
    }

    /// Feeds a chunk of the first prompt in the queue, and lets it join once all is fed.
    fn admit(&mut self) -> Vec<RowEvent> {
        let most = if self.rows.running() > 0 { JOIN_CHUNK } else { usize::MAX };
        let fed = self.waiting.front_mut().map(|it| it.prefill.step(most));
        if matches!(fed, None | Some(Ok(false))) {
            return Vec::new();
        }
        let Some(joining) = self.waiting.pop_front() else { return Vec::new() };
        let (ids, left) = (joining.ids(), joining.left.clone());
        let joined = fed.map_or(Ok(()), |it| it.map(drop)).and_then(|()| self.add(joining));
        let Err(e) = joined else {
            for row in left {
                self.rows.leave(row);
            }
            return Vec::new();
        };
        // Its cache was its own so far, so that the others are not affected.
        let failed = |row| RowEvent { row, outcome: RowOutcome::Failed(e.clone()) };
        ids.filter(|it| !left.contains(it)).map(failed).collect()
    }

    fn add(&mut self, joining: Joining<'a>) -> Result<()> {
        let Joining { first, prefill, copies, prompts, group, .. } = joining;
        let mut session = prefill.finish()?;
        session.repeat(copies)?;
        session.name_rows(first)?;
        self.rows.join(first, session, &prompts, group)
    }

    /// Takes a row out, whether it runs or waits; `false` where there is none of this id.
    pub fn leave(&mut self, row: RowId) -> bool {
        let Some(at) = self.waiting.iter().position(|it| it.ids().any(|id| id == row)) else {
            return self.rows.leave(row);
        };
        let joining = &mut self.waiting[at];
        if joining.left.contains(&row) {
            return false;
        }
        joining.left.push(row);
        if joining.left.len() == joining.prompts.rows().len() {
            self.waiting.remove(at);
        }
        true
    }

    /// Takes out a request by the id of its first row. Returns what became of its rows.
    pub fn take(&mut self, first: RowId) -> LoopOutput {
        self.gone.extend(self.hooked.remove(&first));
        self.rows.take(first)
    }
}

/// A hook is used by one pass at a time, so a panic elsewhere leaves it as a failed pass does.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
