//! The loop: rank the likeliest tokens by what they repeat.

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList, Row};

use super::Rehearse;
use crate::{Decoded, Error, ErrorKind, Keep, Result, Stopping, top_k::TopK};

/// How likelihood and novelty are weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contrast {
    /// HF's `penalty_alpha`: the weight of the penalty on repetition; what is left to 1 is the weight
    /// of the probability.
    pub penalty_alpha: f64,
    /// Candidates per row.
    pub top_k: usize,
}

/// A batch being continued by contrastive search, an iterator like [`Decoding`](crate::Decoding).
///
/// Each step takes the candidate with the highest (1 - α) · p - α · s: p is its probability behind
/// the processors, s the highest cosine of its hidden state with those before it.
///
/// Rows that have ended leave the model's batch as soon as they are half of it.
#[derive(Debug)]
pub struct ContrastiveSearch<M> {
    model: M,
    processors: ProcessorList,
    contrast: Contrast,
    stopping: Stopping,
    keep: Keep,
    pad: u32,
    prompt_len: usize,
    padding: Vec<usize>,
    history: Vec<Vec<u32>>,
    rows: Vec<Decoded>,
    /// Which row each of the model's rows is.
    live: Vec<usize>,
    /// The model's logits, where they are to be kept.
    logits: Vec<f32>,
    scores: Vec<f32>,
    failed: bool,
}

/// The tokens to choose from, as many for each of the model's rows.
struct Candidates {
    per_row: usize,
    tokens: Vec<u32>,
    probabilities: Vec<f32>,
}

impl<M: Rehearse> ContrastiveSearch<M> {
    /// Continues `prompts`, padded rows of one length that `model` has been fed, with `padding[i]`
    /// tokens of padding at the left of row *i*. Rows that have ended are fed `pad`.
    pub fn new(
        model: M,
        prompts: &[Vec<u32>],
        padding: &[usize],
        processors: ProcessorList,
        contrast: Contrast,
        stopping: impl Into<Stopping>,
        pad: u32,
    ) -> Self {
        Self {
            model,
            processors,
            contrast,
            stopping: stopping.into(),
            keep: Keep::default(),
            pad,
            prompt_len: prompts.first().map_or(0, Vec::len),
            padding: padding.to_vec(),
            history: prompts.to_vec(),
            rows: vec![Decoded::default(); prompts.len()],
            live: (0..prompts.len()).collect(),
            logits: Vec::new(),
            scores: Vec::new(),
            failed: false,
        }
    }

    /// Keeps more of each step than its token.
    #[must_use]
    pub fn keep(self, keep: Keep) -> Self {
        Self { keep, ..self }
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

    /// Waits until the scores of the next token are there.
    ///
    /// # Errors
    /// When the model fails.
    pub fn wait(&mut self) -> Result<()> {
        self.model.scores().map(|_| ())
    }

    fn is_done(&self) -> bool {
        self.failed || self.rows.iter().all(|it| it.finish_reason.is_some())
    }

    fn step(&mut self) -> Result<Vec<Option<u32>>> {
        let Candidates { per_row, tokens, probabilities } = self.candidates()?;
        let resemblance = self.model.rehearse(&tokens, per_row)?;
        let alpha = self.contrast.penalty_alpha;
        let (weight, penalty) = ((1.0 - alpha) as f32, alpha as f32);
        // What processors have banned is no choice, however new it would be.
        let worth = |(probability, alike): (&f32, &f32)| match *probability {
            0.0 => f32::NEG_INFINITY,
            probability => weight * probability - penalty * alike,
        };
        let worth: Vec<f32> = probabilities.iter().zip(&resemblance).map(worth).collect();
        let copies: Vec<usize> = worth.chunks_exact(per_row).map(first_of_highest).collect();
        self.model.keep(&copies)?;

        let vocab = self.model.vocab_size();
        let mut chosen = vec![None; self.rows.len()];
        for (place, (&row, copy)) in self.live.iter().zip(copies).enumerate() {
            let decoded = &mut self.rows[row];
            if decoded.finish_reason.is_some() {
                continue;
            }
            let token = tokens[place * per_row + copy];
            chosen[row] = Some(token);
            decoded.tokens.push(token);
            let of = |all| <[f32]>::chunks_exact(all, vocab).nth(place).unwrap_or_default();
            decoded.kept.push(self.keep, token, of(&self.logits), of(&self.scores))?;
            self.history[row].push(token);
            let (prompt_len, padding) = (self.prompt_len, self.padding[row]);
            let context = Context { tokens: &self.history[row], prompt_len, padding, row };
            decoded.finish_reason = self.stopping.check(&context)?;
        }
        self.drop_ended_rows()?;
        Ok(chosen)
    }

    /// The likeliest tokens of every row with their processed probabilities; padding for rows that
    /// have ended.
    fn candidates(&mut self) -> Result<Candidates> {
        let vocab = self.model.vocab_size();
        let per_row = self.contrast.top_k.clamp(1, vocab);
        let logits = self.model.scores()?;
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        if self.keep.logits || self.keep.logprobs.is_some() {
            self.logits.clear();
            self.logits.extend_from_slice(logits);
        }
        let (prompt_len, padding, history) = (self.prompt_len, &self.padding, &self.history);
        let context =
            |row: usize| Context { tokens: &history[row], prompt_len, padding: padding[row], row };
        let live = self.live.iter().zip(self.scores.chunks_exact_mut(vocab));
        let mut going: Vec<Row<'_>> = live
            .filter(|(row, _)| self.rows[**row].finish_reason.is_none())
            .map(|(&row, scores)| Row { context: context(row), scores })
            .collect();
        self.processors.process_rows(&mut going)?;

        let count = self.live.len() * per_row;
        let mut tokens = Vec::with_capacity(count);
        let mut probabilities = Vec::with_capacity(count);
        for (&row, scores) in self.live.iter().zip(self.scores.chunks_exact(vocab)) {
            if self.rows[row].finish_reason.is_some() {
                tokens.extend(std::iter::repeat_n(self.pad, per_row));
                probabilities.extend(std::iter::repeat_n(0.0, per_row));
                continue;
            }
            let max = mlxgk_torch::max(scores);
            let sum = mlxgk_torch::sum_of_exp(scores, max);
            if !sum.is_finite() {
                let what = "no token can be chosen: all are banned, or the scores hold NaN";
                return Err(Error::new(ErrorKind::NoToken, what));
            }
            let mut best = TopK::new(per_row);
            best.offer(scores, 0.0);
            for it in best.finish() {
                tokens.push(it.place as u32);
                probabilities.push(mlxgk_torch::exp(it.score - max) * (1.0 / sum));
            }
        }
        Ok(Candidates { per_row, tokens, probabilities })
    }

    fn drop_ended_rows(&mut self) -> Result<()> {
        let going = |it: &usize| self.rows[self.live[*it]].finish_reason.is_none();
        let places: Vec<usize> = (0..self.live.len()).filter(going).collect();
        if !places.is_empty() && 2 * places.len() <= self.live.len() {
            self.model.reorder(&places)?;
            self.live = places.iter().map(|&it| self.live[it]).collect();
        }
        Ok(())
    }
}

/// The place of the first of the highest values, as torch takes it.
fn first_of_highest(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

impl<M: Rehearse> Iterator for ContrastiveSearch<M> {
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
