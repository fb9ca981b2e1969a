//! The one account of a row: its text, how its next token is chosen, when it ends, what is recorded.
//!
//! A request is one or more rows, a *group*. What the rows of a group share is a [`RowGroup`]; what
//! each has for itself is its text, its end and its record. A loop asks [`Rows`] for tokens, feeds
//! them, and asks again; which place of the model's batch a row has is known here alone.

use std::collections::BTreeMap;

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList, guide};

use crate::{
    Chooser, Error, FinishReason, LeftPadded, Record, Recorded, Result, RowEvent, RowId,
    RowOutcome, RowOutput, Rules, StopConditions, dola, session::Chosen,
};

/// What the rows of one request share.
///
/// ```
/// use mlxgk_decoding_strategies::{Limits, Record, RowGroup};
///
/// let group = RowGroup::greedy(Limits { max_new_tokens: 20, eos: vec![2] })
///     .record(Record { logprobs: Some(3), ..Record::default() });
/// assert_eq!(group.limits().eos, [2]);
/// ```
#[derive(Debug)]
#[must_use]
pub struct RowGroup {
    pub(crate) rules: Rules,
    pub(crate) record: Record,
    pub(crate) pad: u32,
    pub(crate) guidance: Option<f64>,
    contrasts_layers: bool,
}

impl RowGroup {
    /// Rows that take the likeliest token, without processors, until `stop` ends them.
    pub fn greedy(stop: impl Into<StopConditions>) -> Self {
        Self::new(Rules::greedy(stop))
    }

    /// Rows that choose and stop by these rules.
    pub fn new(rules: Rules) -> Self {
        Self { rules, record: Record::default(), pad: 0, guidance: None, contrasts_layers: false }
    }

    /// What the scores go through before a token is chosen.
    pub fn processors(mut self, processors: ProcessorList) -> Self {
        self.rules.processors = processors;
        self
    }

    /// How a token is chosen, and from which random stream.
    pub fn chooser(mut self, chooser: Chooser) -> Self {
        self.rules.chooser = chooser;
        self
    }

    /// What to record of each step besides its token.
    pub fn record(self, record: Record) -> Self {
        Self { record, ..self }
    }

    /// The token that is fed to rows that have ended, as long as they are in the model's batch; 0
    /// where nothing is set.
    pub fn pad(self, pad: u32) -> Self {
        Self { pad, ..self }
    }

    /// Moves each row's scores away from those of a second row of the model by this factor
    /// (classifier-free guidance, HF `guidance_scale`; the arithmetic is [`guide`]'s). The model must
    /// have been fed the rows with their prompts and then, in the same order, those without.
    pub fn guidance(self, scale: Option<f64>) -> Self {
        Self { guidance: scale, ..self }
    }

    /// Says that the scores are [DoLa's](crate::Prefill::dola): where processors ban all that DoLa leaves,
    /// greedy rows are given id 0, as in HF, and not an error.
    pub fn dola(self) -> Self {
        Self { contrasts_layers: true, ..self }
    }

    /// Whether the rows are guided, so that the model has two rows for each.
    pub fn is_guided(&self) -> bool {
        self.guidance.is_some()
    }

    /// The processors, the choice and the stop conditions.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The end tokens and the length.
    pub fn limits(&self) -> &crate::Limits {
        self.rules.stop.limits()
    }

    /// Gives a row its next token, chosen from the model's scores; `without` are those of the row
    /// that guidance moves away from.
    fn advance(
        &mut self,
        row: &mut Row,
        logits: &[f32],
        without: Option<&[f32]>,
        scratch: &mut Scratch,
    ) -> Result<(u32, Option<FinishReason>)> {
        let chosen = self.choose(row, logits, without, scratch);
        // torch draws for every row in every step.
        let vocab = logits.len();
        let token = chosen.inspect_err(|_| self.rules.chooser.skip(row.index, vocab))?;
        let logits = if without.is_some() { &scratch.guided } else { logits };
        let finish_reason = row.push(self, token, logits, &scratch.warped)?;
        Ok((token, finish_reason))
    }

    /// The token, from the scores after guidance and processors, which stay in `scratch`.
    fn choose(
        &mut self,
        row: &Row,
        logits: &[f32],
        without: Option<&[f32]>,
        scratch: &mut Scratch,
    ) -> Result<u32> {
        let logits = match (without, self.guidance) {
            (Some(without), Some(scale)) => {
                let guided = refill(&mut scratch.guided, logits);
                guide(guided, without, scale)?;
                guided
            }
            _ => logits,
        };
        let (context, warped) = (row.context(), &mut scratch.warped);
        let Rules { processors, chooser, .. } = &mut self.rules;
        let (mut scores, mut processed) = (logits, Ok(()));
        if !processors.is_empty() {
            // Processors write, and the array that MLX owns is read-only.
            let buffer = refill(&mut scratch.processed, logits);
            processed = processors.process(&context, buffer);
            scores = buffer;
        }
        let chosen = processed.and_then(|()| match self.record.scores {
            true => chooser.choose_keeping(row.index, &context, scores, warped),
            false => chooser.choose(row.index, &context, scores),
        });
        chosen.or_else(|e| {
            let in_dola = dola::token_of_none(chooser, scores).filter(|_| self.contrasts_layers);
            in_dola.ok_or_else(|| processors.explain(e, &context, logits).into())
        })
    }
}

/// Buffers that a step fills and the next fills again.
#[derive(Debug, Default)]
struct Scratch {
    guided: Vec<f32>,
    processed: Vec<f32>,
    warped: Vec<f32>,
}

fn refill<'a>(buffer: &'a mut Vec<f32>, values: &[f32]) -> &'a mut [f32] {
    buffer.clear();
    buffer.extend_from_slice(values);
    buffer
}

/// One row: its text and what became of it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: RowId,
    /// Which of its group's rows it is: HF's `batch_id`.
    pub(crate) index: usize,
    /// Left padding, prompt and new tokens.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    pub(crate) padding: usize,
    recorded: Recorded,
    state: State,
    /// Where it stands in the model's batch, and where the row that it is guided away from does.
    place: Option<usize>,
    unguided: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Finished(FinishReason),
    /// It failed, or was taken out.
    Gone,
}

impl Row {
    pub(crate) fn new(id: RowId, index: usize, prompt: &[u32], padding: usize) -> Self {
        Self {
            id,
            index,
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            padding,
            recorded: Recorded::default(),
            state: State::Running,
            place: None,
            unguided: None,
        }
    }

    pub(crate) fn context(&self) -> Context<'_> {
        let (prompt_len, padding) = (self.prompt_len, self.padding);
        Context { tokens: &self.tokens, prompt_len, padding, row: self.index }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Where it stands in the model's batch, running or not.
    pub(crate) fn place(&self) -> Option<usize> {
        self.place
    }

    /// Where a running row stands in the model's batch.
    pub(crate) fn running_place(&self) -> Option<usize> {
        self.place.filter(|_| self.is_running())
    }

    /// New tokens so far.
    pub(crate) fn new_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Appends a token, records what it was chosen from (the model's `logits`, the processed and
    /// warped `scores`), and says whether the row ends with it.
    pub(crate) fn push(
        &mut self,
        group: &mut RowGroup,
        token: u32,
        logits: &[f32],
        scores: &[f32],
    ) -> Result<Option<FinishReason>> {
        self.recorded.push(group.record, token, logits, scores)?;
        self.tokens.push(token);
        let finish_reason = group.rules.stop.check(&self.context());
        let finish_reason = finish_reason.map_err(Error::of_criterion)?;
        if let Some(reason) = finish_reason {
            self.state = State::Finished(reason);
        }
        Ok(finish_reason)
    }

    /// What a step made of the row, as an event: the token that was appended last, or an error, after which
    /// the row has ended.
    pub(crate) fn event(&mut self, step: Result<(u32, Option<FinishReason>)>) -> RowEvent {
        let outcome = match step {
            Ok((token, finish_reason)) => {
                let logprobs = self.recorded.logprobs.last().cloned();
                RowOutcome::Token { token, logprobs, finish_reason }
            }
            Err(e) => self.fail(e),
        };
        RowEvent { row: self.id, outcome }
    }

    fn fail(&mut self, error: Error) -> RowOutcome {
        self.state = State::Gone;
        RowOutcome::Failed(error)
    }

    pub(crate) fn into_output(mut self) -> RowOutput {
        let finish_reason = match self.state {
            State::Finished(reason) => Some(reason),
            State::Running | State::Gone => None,
        };
        let tokens = self.tokens.split_off(self.prompt_len);
        RowOutput { tokens, finish_reason, recorded: self.recorded, beam: None }
    }
}

/// The rows of a batch, group by group.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// By the first row's id.
    groups: BTreeMap<RowId, Group>,
    /// Rows of the model's batch.
    places: usize,
    next_id: u64,
    /// Rows that ended before their first token.
    ended: Vec<RowEvent>,
    scratch: Scratch,
}

#[derive(Debug)]
struct Group {
    shared: RowGroup,
    rows: Vec<Row>,
}

impl Group {
    fn is_running(&self) -> bool {
        self.rows.iter().any(Row::is_running)
    }
}

impl Rows {
    /// The rows of one request, the model's first.
    pub(crate) fn of(prompts: &LeftPadded, group: RowGroup) -> Self {
        let mut rows = Self::default();
        let first = rows.reserve(prompts.rows().len());
        rows.add(first, prompts, group);
        rows
    }

    /// A row of its own for each prompt and group.
    pub(crate) fn of_groups(prompts: &LeftPadded, groups: Vec<RowGroup>) -> Self {
        let mut rows = Self::default();
        for (at, group) in groups.into_iter().enumerate().take(prompts.rows().len()) {
            let first = rows.reserve(1);
            rows.add(first, &prompts.part(&[at]), group);
        }
        rows
    }

    /// The rows of one request, none of which has a place in the model's batch yet.
    pub(crate) fn waiting(prompts: &LeftPadded, group: RowGroup) -> Self {
        let mut rows = Self::of(prompts, group);
        rows.vacate();
        rows
    }

    /// The next rows that wait for a place, at most so many; `None` where a row of the model's batch runs
    /// or none waits.
    pub(crate) fn next_part(&self, most: usize) -> Option<Vec<usize>> {
        let rows = || self.groups.values().flat_map(|it| &it.rows);
        let next: Vec<usize> =
            rows().filter(|it| it.is_running()).map(|it| it.index).take(most).collect();
        (!self.is_fed() && !next.is_empty()).then_some(next)
    }

    /// Gives rows of the one group the places of the model's batch, in this order.
    pub(crate) fn admit(&mut self, part: &[usize]) {
        self.vacate();
        for group in self.groups.values_mut() {
            let is_guided = group.shared.is_guided();
            for (place, &index) in part.iter().enumerate() {
                let row = &mut group.rows[index];
                row.place = Some(place);
                row.unguided = is_guided.then_some(part.len() + place);
            }
            self.places = if is_guided { 2 * part.len() } else { part.len() };
        }
    }

    /// Whether a row of the model's batch runs.
    pub(crate) fn is_fed(&self) -> bool {
        let mut rows = self.groups.values().flat_map(|it| &it.rows);
        rows.any(|it| it.running_place().is_some())
    }

    /// Ids for so many rows of the model; the first of them.
    pub(crate) fn reserve(&mut self, count: usize) -> RowId {
        let first = RowId::new(self.next_id);
        self.next_id += count as u64;
        first
    }

    /// Adds the rows of a request after those that there are, under ids that were reserved.
    pub(crate) fn add(&mut self, first: RowId, prompts: &LeftPadded, group: RowGroup) {
        let count = prompts.rows().len();
        let ends_at_once = group.limits().max_new_tokens == 0;
        let (place, is_guided) = (self.places, group.guidance.is_some());
        self.places += if is_guided { 2 * count } else { count };
        let each = prompts.rows().iter().zip(prompts.padding()).enumerate();
        let row = |(index, (prompt, &padding)): (usize, (&Vec<u32>, &usize))| {
            let id = RowId::new(first.get() + index as u64);
            let mut row = Row::new(id, index, prompt, padding);
            row.place = Some(place + index);
            row.unguided = is_guided.then_some(place + count + index);
            if ends_at_once {
                row.state = State::Finished(FinishReason::Length);
            }
            row
        };
        let rows: Vec<Row> = each.map(row).collect();
        if ends_at_once {
            let outcome = || RowOutcome::Finished(FinishReason::Length);
            self.ended.extend(rows.iter().map(|it| RowEvent { row: it.id, outcome: outcome() }));
        }
        self.groups.insert(first, Group { shared: group, rows });
    }

    /// Whether a row still needs the model.
    pub(crate) fn is_running(&self) -> bool {
        self.groups.values().any(Group::is_running)
    }

    /// Whether there is one row in all, and one of the model's.
    pub(crate) fn is_single(&self) -> bool {
        let mut rows = self.groups.values().flat_map(|it| &it.rows);
        matches!((rows.next(), rows.next()), (Some(row), None) if row.unguided.is_none())
    }

    /// How many rows still need the model.
    pub(crate) fn running(&self) -> usize {
        self.groups.values().flat_map(|it| &it.rows).filter(|it| it.is_running()).count()
    }

    /// What ended before its first token.
    pub(crate) fn ended_at_once(&mut self) -> Vec<RowEvent> {
        std::mem::take(&mut self.ended)
    }

    /// Every row of the groups that still run, with what it shares, in order.
    pub(crate) fn for_each(&mut self, mut f: impl FnMut(&mut RowGroup, &mut Row)) {
        for group in self.groups.values_mut().filter(|it| it.is_running()) {
            group.rows.iter_mut().for_each(|row| f(&mut group.shared, row));
        }
    }

    /// Gives every running row its next token, chosen from the scores of the model's rows. Returns
    /// what became of each, and what the model's rows are to be fed.
    pub(crate) fn choose(&mut self, scores: &[f32], vocab: usize) -> (Vec<RowEvent>, Vec<u32>) {
        let mut fed = vec![0; self.places];
        let mut events = Vec::with_capacity(self.places);
        let mut scratch = std::mem::take(&mut self.scratch);
        self.for_each(|group, row| {
            let of = |place: usize| &scores[place * vocab..][..vocab];
            let Some(place) = row.running_place() else {
                // torch draws for rows that have ended, too.
                group.rules.chooser.skip(row.index, vocab);
                [row.place, row.unguided].into_iter().flatten().for_each(|it| fed[it] = group.pad);
                return;
            };
            let step = group.advance(row, of(place), row.unguided.map(of), &mut scratch);
            // As in HF a row is fed its end token too: what reads all rows at once, as DoLa does,
            // depends on it.
            let token = step.as_ref().map_or(group.pad, |(token, _)| *token);
            fed[place] = token;
            row.unguided.into_iter().for_each(|it| fed[it] = token);
            events.push(row.event(step));
        });
        self.scratch = scratch;
        (events, fed)
    }

    /// The quantile of each of the model's rows, by which the device draws; 0 where nothing is drawn.
    pub(crate) fn quantiles(&mut self) -> Vec<f64> {
        let mut quantiles = vec![0.0; self.places];
        self.for_each(|group, row| {
            if let (Some(place), Chooser::Sample(sampling)) =
                (row.running_place(), &mut group.rules.chooser)
            {
                quantiles[place] = sampling.quantile(row.index).unwrap_or_default();
            }
        });
        quantiles
    }

    /// Gives every running row the token that the device chose for it. Returns what became of each.
    pub(crate) fn accept(&mut self, chosen: &Chosen) -> Result<Vec<RowEvent>> {
        let (tokens, mut events) = (chosen.tokens()?, Vec::with_capacity(self.places));
        let mut scratch = std::mem::take(&mut self.scratch);
        self.for_each(|group, row| {
            let Some(place) = row.running_place() else { return };
            let step = match chosen.doubtful(place) {
                Ok(None) => {
                    row.push(group, tokens[place], &[], &[]).map(|end| (tokens[place], end))
                }
                Ok(Some(scores)) => group.advance(row, scores, None, &mut scratch),
                Err(e) => Err(e),
            };
            events.push(row.event(step));
        });
        self.scratch = scratch;
        Ok(events)
    }

    /// The places of the model's batch to keep, where those of ended rows are worth dropping: once
    /// they are half of it, or hold twice the columns that the others need. Moving a cache costs about
    /// as much as one step, so it is not done for each.
    pub(crate) fn retire(&mut self) -> Option<Vec<usize>> {
        let (mut kept, mut longest, mut longest_kept) = (Vec::new(), 0, 0);
        for row in self.groups.values().flat_map(|it| &it.rows) {
            let len = row.tokens.len() - row.padding;
            longest = longest.max(if row.place.is_some() { len } else { 0 });
            if row.running_place().is_some() {
                longest_kept = longest_kept.max(len);
                kept.extend([row.place, row.unguided].into_iter().flatten());
            }
        }
        let worth = 2 * kept.len() <= self.places || 2 * longest_kept <= longest;
        if kept.is_empty() || kept.len() == self.places || !worth {
            return None;
        }
        kept.sort_unstable();
        let moved = |place: Option<usize>| place.and_then(|it| kept.binary_search(&it).ok());
        for row in self.groups.values_mut().flat_map(|it| &mut it.rows) {
            row.place = moved(row.place);
            row.unguided = moved(row.unguided);
        }
        self.places = kept.len();
        Some(kept)
    }

    /// Forgets which places rows have, where the model's batch is dropped as a whole.
    pub(crate) fn vacate(&mut self) {
        for row in self.groups.values_mut().flat_map(|it| &mut it.rows) {
            (row.place, row.unguided) = (None, None);
        }
        self.places = 0;
    }

    /// Ends a row without an event; `false` where it is not running.
    pub(crate) fn leave(&mut self, id: RowId) -> bool {
        let group = self.groups.range_mut(..=id).next_back().map(|(_, group)| group);
        let row = group.and_then(|it| it.rows.iter_mut().find(|row| row.id == id));
        match row.filter(|it| it.is_running()) {
            Some(row) => {
                row.state = State::Gone;
                true
            }
            None => false,
        }
    }

    /// Takes a group out, by its first row, and returns what became of its rows.
    pub(crate) fn take(&mut self, first: RowId) -> Vec<RowOutput> {
        let group = self.groups.remove(&first);
        group.into_iter().flat_map(|it| it.rows).map(Row::into_output).collect()
    }

    /// Forgets all rows.
    pub(crate) fn clear(&mut self) {
        *self = Self { next_id: self.next_id, ..Self::default() };
    }

    /// What became of all rows, in order.
    pub(crate) fn into_outputs(self) -> Vec<RowOutput> {
        self.groups.into_values().flat_map(|it| it.rows).map(Row::into_output).collect()
    }
}
