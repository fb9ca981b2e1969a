//! The greedy and sampling loop (HF `GenerationMixin._sample`).

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList, Row};

use crate::{FinishReason, Keep, Kept, Reorder, Result, Rule, Stopping};

/// One row's new tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    /// New tokens, up to and including the end token; no padding.
    pub tokens: Vec<u32>,
    /// Why the row ended; `None` while it goes on.
    pub finish_reason: Option<FinishReason>,
    /// What else was to be [kept](Keep) of its steps.
    pub kept: Kept,
}

/// A batch being continued, one token per row and step.
///
/// An iterator over steps; each item holds the new token of every row, `None` for rows that ended
/// earlier. When an item is handed out the model is already at work on the next one.
///
/// Rows that have ended leave the model's batch as soon as they are half of it, so that they cost
/// nothing more. Until then they are fed padding.
#[derive(Debug)]
pub struct Decoding<M> {
    model: M,
    processors: ProcessorList,
    rule: Rule,
    stopping: Stopping,
    keep: Keep,
    drops_rows: bool,
    pad: u32,
    prompt_len: usize,
    padding: Vec<usize>,
    /// Padded prompt and new tokens per row.
    history: Vec<Vec<u32>>,
    rows: Vec<Decoded>,
    /// Which row each of the model's rows is.
    live: Vec<usize>,
    scratch: Vec<f32>,
    warped: Vec<f32>,
    failed: bool,
}

impl<M: Reorder> Decoding<M> {
    /// Continues `prompts`, padded rows of one length that `model` has been fed, with `padding[i]`
    /// tokens of padding at the left of row *i*. Rows that have ended are fed `pad`.
    pub fn new(
        model: M,
        prompts: &[Vec<u32>],
        padding: &[usize],
        processors: ProcessorList,
        rule: Rule,
        stopping: impl Into<Stopping>,
        pad: u32,
    ) -> Self {
        Self {
            model,
            processors,
            rule,
            stopping: stopping.into(),
            keep: Keep::default(),
            drops_rows: true,
            pad,
            prompt_len: prompts.first().map_or(0, Vec::len),
            padding: padding.to_vec(),
            history: prompts.to_vec(),
            rows: vec![Decoded::default(); prompts.len()],
            live: (0..prompts.len()).collect(),
            scratch: Vec::new(),
            warped: Vec::new(),
            failed: false,
        }
    }

    /// Keeps more of each step than its token.
    #[must_use]
    pub fn keep(self, keep: Keep) -> Self {
        Self { keep, ..self }
    }

    /// Leaves rows that have ended in the model's batch, so that row *i* stays row *i* for a hook
    /// that tells rows apart.
    #[must_use]
    pub fn keep_ended_rows(self) -> Self {
        Self { drops_rows: false, ..self }
    }

    /// The rows as far as they got.
    pub fn rows(&self) -> &[Decoded] {
        &self.rows
    }

    /// When rows end.
    pub fn stopping(&self) -> &Stopping {
        &self.stopping
    }

    /// Gives up the model and the rows.
    pub fn into_parts(self) -> (M, Vec<Decoded>) {
        (self.model, self.rows)
    }

    /// Waits until the scores of the next token are there: the end of the prefill, when called
    /// before the first step.
    ///
    /// # Errors
    /// When the model fails.
    pub fn wait(&mut self) -> Result<()> {
        self.model.scores().map(|_| ())
    }

    fn has_ended(&self, row: usize) -> bool {
        self.rows[row].finish_reason.is_some()
    }

    fn is_done(&self) -> bool {
        self.failed || self.rows.iter().all(|it| it.finish_reason.is_some())
    }

    fn step(&mut self) -> Result<Vec<Option<u32>>> {
        let chosen = self.choose()?;
        for (row, token) in chosen.iter().enumerate() {
            let Some(token) = *token else { continue };
            self.history[row].push(token);
            self.rows[row].tokens.push(token);
            let (prompt_len, padding) = (self.prompt_len, self.padding[row]);
            let context = Context { tokens: &self.history[row], prompt_len, padding, row };
            self.rows[row].finish_reason = self.stopping.check(&context)?;
        }
        if !self.is_done() {
            self.drop_ended_rows()?;
            // As in HF a row is fed its end token too: what reads all rows at once, as DoLa does,
            // depends on it.
            let fed: Vec<u32> =
                self.live.iter().map(|&row| chosen[row].unwrap_or(self.pad)).collect();
            self.model.feed(&fed)?;
        }
        Ok(chosen)
    }

    /// Takes the ended rows out of the model once they are half of its batch. Moving the cache costs
    /// about as much as one step, so it is not done for each.
    fn drop_ended_rows(&mut self) -> Result<()> {
        let going = |it: &usize| !self.has_ended(self.live[*it]);
        let places: Vec<usize> = (0..self.live.len()).filter(going).collect();
        if self.drops_rows && 2 * places.len() <= self.live.len() {
            self.model.reorder(&places)?;
            self.live = places.iter().map(|&it| self.live[it]).collect();
        }
        Ok(())
    }

    /// The next token of every row, `None` for those that have ended.
    fn choose(&mut self) -> Result<Vec<Option<u32>>> {
        let vocab = self.model.vocab_size();
        let logits = self.model.scores()?;
        let mut scores = logits;
        let (prompt_len, padding, history) = (self.prompt_len, &self.padding, &self.history);
        let context =
            |row: usize| Context { tokens: &history[row], prompt_len, padding: padding[row], row };
        let rows = &mut self.rows;
        if !self.processors.is_empty() {
            // Processors write, and the array that MLX owns is read-only.
            self.scratch.clear();
            self.scratch.extend_from_slice(scores);
            let live = self.live.iter().zip(self.scratch.chunks_exact_mut(vocab));
            let mut going: Vec<Row<'_>> = live
                .filter(|(row, _)| rows[**row].finish_reason.is_none())
                .map(|(&row, scores)| Row { context: context(row), scores })
                .collect();
            self.processors.process_rows(&mut going)?;
            scores = &self.scratch;
        }
        let mut places = self.live.iter().enumerate();
        let mut next = places.next();
        let mut chosen = vec![None; rows.len()];
        for (row, decoded) in rows.iter_mut().enumerate() {
            // A row that has left the model's batch, or is about to.
            let place = next.filter(|(_, it)| **it == row).map(|(place, _)| place);
            if place.is_some() {
                next = places.next();
            }
            let Some(place) = place.filter(|_| decoded.finish_reason.is_none()) else {
                self.rule.skip(row, vocab);
                continue;
            };
            let of = |all| <[f32]>::chunks_exact(all, vocab).nth(place).unwrap_or_default();
            let (context, scores) = (context(row), of(scores));
            let token = if self.keep.scores {
                self.rule.choose_keeping(row, &context, scores, &mut self.warped)?
            } else {
                self.rule.choose(row, &context, scores)?
            };
            decoded.kept.push(self.keep, token, of(logits), &self.warped)?;
            chosen[row] = Some(token);
        }
        Ok(chosen)
    }
}

impl<M: Reorder> Iterator for Decoding<M> {
    type Item = Result<Vec<Option<u32>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done() || self.stopping.stop().max_new_tokens == 0 {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        Some(step)
    }
}
