//! The greedy and sampling loop (HF `GenerationMixin._sample`).

use crate::{
    Join, LeftPadded, LoopOutput, Reorder, Result, RowEvent, RowGroup, RowId, RowOutput, TokenLoop,
    rows::Rows,
};

/// A batch being continued, one token per row and step.
///
/// When a step returns, the model is already at work on the next one. Rows that have ended leave the
/// model's batch once they are half of it, so that they cost nothing more; until then they are fed
/// padding.
///
/// Rows of several requests may [join](Self::join) and [leave](TokenLoop::leave) between steps. What
/// a row is given does not depend on who shares its batch.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     DecoderSession, LeftPadded, Limits, RowGroup, SampleLoop, TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = |tokens: &[u32]| LeftPadded::new(&[tokens.to_vec()], 0);
/// let session = |it: &LeftPadded| DecoderSession::prefill(&model, it, 64, NoHook);
/// let group = || RowGroup::greedy(Limits { max_new_tokens: 3, eos: vec![] });
///
/// let first = prompts(&[5, 9, 14])?;
/// let mut it = SampleLoop::new(session(&first)?, &first, group());
/// it.step().transpose()?;
/// // A second request joins while the first is under way.
/// let second = prompts(&[7])?;
/// let id = it.reserve(1);
/// it.join(id, session(&second)?, &second, group())?;
/// while it.step().transpose()?.is_some() {}
/// assert_eq!(it.take(id).rows[0].tokens.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SampleLoop<M> {
    /// None while there are no rows.
    model: Option<M>,
    rows: Rows,
}

impl<M: Reorder> SampleLoop<M> {
    /// Continues prompts that `model` has been fed.
    pub fn new(model: M, prompts: &LeftPadded, group: RowGroup) -> Self {
        Self { model: Some(model), rows: Rows::of(prompts, group) }
    }

    /// Continues prompts that `model` has been fed, each with a group of its own.
    pub fn of_groups(model: M, prompts: &LeftPadded, groups: Vec<RowGroup>) -> Self {
        Self { model: Some(model), rows: Rows::of_groups(prompts, groups) }
    }

    /// A loop without rows, for some to join.
    pub fn empty() -> Self {
        Self { model: None, rows: Rows::default() }
    }

    /// Rows without a model, to be [run](Self::run) a part at a time.
    pub(crate) fn waiting(prompts: &LeftPadded, group: RowGroup) -> Self {
        Self { model: None, rows: Rows::waiting(prompts, group) }
    }

    /// The next rows to run, at most so many, where none runs; the model of those before is dropped.
    pub(crate) fn next_part(&mut self, most: usize) -> Option<Vec<usize>> {
        let part = self.rows.next_part(most)?;
        self.model = None;
        Some(part)
    }

    /// Runs a part of the rows, whose prompts `model` has been fed.
    pub(crate) fn run(&mut self, part: &[usize], model: M) {
        self.rows.admit(part);
        self.model = Some(model);
    }

    /// Ends all rows without an event.
    pub(crate) fn fail(&mut self) {
        self.model = None;
        self.rows.clear();
    }

    /// How many rows have not ended.
    pub fn running(&self) -> usize {
        self.rows.running()
    }

    /// Ids for rows that are to join, as many as the model has for them; the first of them.
    pub fn reserve(&mut self, count: usize) -> RowId {
        self.rows.reserve(count)
    }

    /// Takes out a request by the id of its first row. Returns what became of its rows.
    pub fn take(&mut self, first: RowId) -> LoopOutput {
        LoopOutput { rows: self.rows.take(first), ..LoopOutput::default() }
    }

    /// Gives up the model, where one is left, and the rows.
    pub fn into_parts(self) -> (Option<M>, Vec<RowOutput>) {
        (self.model, self.rows.into_outputs())
    }

    fn advance(&mut self) -> Result<Vec<RowEvent>> {
        let mut events = self.rows.ended_at_once();
        let Some(model) = self.model.as_mut().filter(|_| self.rows.is_fed()) else {
            return Ok(events);
        };
        let vocab = model.vocab_size();
        let (chosen, mut fed) = self.rows.choose(model.scores()?, vocab);
        events.extend(chosen);
        if self.rows.is_fed() {
            let kept = if model.couples_rows() { None } else { self.rows.retire() };
            if let Some(places) = kept {
                model.reorder(&places)?;
                fed = places.iter().map(|&it| fed[it]).collect();
            }
            model.feed(&fed)?;
        }
        Ok(events)
    }

    /// The model, where one is left.
    pub(crate) fn model(&self) -> Option<&M> {
        self.model.as_ref()
    }

    /// Drops the model, with its cache, where no row runs any more.
    pub(crate) fn release(&mut self) {
        if !self.rows.is_running() {
            self.model = None;
            self.rows.vacate();
        }
    }
}

impl<M: Join> SampleLoop<M> {
    /// Adds a request whose prompts `model` has been fed, under ids that were
    /// [reserved](Self::reserve); its rows take part from the next step on.
    ///
    /// # Errors
    /// When the models cannot be joined. The other rows are not affected.
    pub fn join(
        &mut self,
        first: RowId,
        model: M,
        prompts: &LeftPadded,
        group: RowGroup,
    ) -> Result<()> {
        match self.model.as_mut().filter(|_| self.rows.is_running()) {
            Some(all) => all.join(model)?,
            None => {
                self.rows.vacate();
                self.model = Some(model);
            }
        }
        self.rows.add(first, prompts, group);
        Ok(())
    }
}

impl<M: Reorder> TokenLoop for SampleLoop<M> {
    fn wait(&mut self) -> Result<()> {
        self.model.as_mut().map_or(Ok(()), |model| model.scores().map(drop))
    }

    fn step(&mut self) -> Option<Result<Vec<RowEvent>>> {
        let step = self.advance();
        match &step {
            Ok(events) if events.is_empty() => return None,
            Ok(_) => {}
            Err(_) => self.fail(),
        }
        Some(step)
    }

    fn leave(&mut self, row: RowId) -> bool {
        self.rows.leave(row)
    }

    fn finish(self: Box<Self>) -> Result<LoopOutput> {
        let single = self.rows.is_single();
        let (model, rows) = self.into_parts();
        let cache = model.filter(|_| single).and_then(M::into_cache);
        Ok(LoopOutput { rows, cache, ..LoopOutput::default() })
    }
}
