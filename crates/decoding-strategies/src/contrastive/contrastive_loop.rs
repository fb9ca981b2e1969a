//! The loop: rank the likeliest tokens by what they repeat.

use mlxgk_logits_processors::{Error, ErrorKind, LogitsProcessor, Result as Processed};
use mlxgk_samplers::greedy;
use mlxgk_torch::TopK;

use super::Lookahead;
use crate::{
    LeftPadded, LoopOutput, Result, RowEvent, RowGroup, RowId, RowOutput, TokenLoop, rows::Rows,
};

/// How likelihood and novelty are weighed.
///
/// See the example of [`ContrastiveLoop`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ContrastiveOptions {
    /// HF's `penalty_alpha`: the weight of the penalty on repetition; what is left to 1 is the weight
    /// of the probability.
    pub penalty_alpha: f64,
    /// Candidates per row.
    pub top_k: usize,
}

/// A batch being continued by contrastive search.
///
/// Each step takes the candidate with the highest (1 - α) · p - α · s: p is its probability after
/// the processors, s the highest cosine of its hidden state with those before it. The chooser of the
/// rows is not asked.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     ContrastiveLoop, ContrastiveOptions, ContrastiveSession, LeftPadded, Limits, Prefill,
///     RowGroup, TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14]], 0)?;
/// let run = |penalty_alpha, top_k| {
///     let session = ContrastiveSession::prefill(Prefill::new(&model, &prompts, NoHook))?;
///     let group = RowGroup::greedy(Limits { max_new_tokens: 6, eos: vec![] });
///     let options = ContrastiveOptions { penalty_alpha, top_k };
///     let mut it = ContrastiveLoop::new(session, &prompts, group, options);
///     while it.step().transpose()?.is_some() {}
///     Ok::<_, mlxgk_decoding_strategies::Error>(it.into_parts().1[0].tokens.clone())
/// };
/// // Without a penalty, or with a single candidate, it takes the likeliest token.
/// assert_eq!(run(0.0, 4)?, run(0.6, 1)?);
/// assert_ne!(run(0.9, 4)?, run(0.6, 1)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ContrastiveLoop<M> {
    model: M,
    rows: Rows,
    options: ContrastiveOptions,
    /// The model's logits, where they are to be recorded.
    logits: Vec<f32>,
    scores: Vec<f32>,
    /// For each of the model's rows as many tokens to choose from, and their processed probabilities.
    tokens: Vec<u32>,
    probabilities: Vec<f32>,
}

impl<M: Lookahead> ContrastiveLoop<M> {
    /// Continues prompts that `model` has been fed.
    pub fn new(
        model: M,
        prompts: &LeftPadded,
        group: RowGroup,
        options: ContrastiveOptions,
    ) -> Self {
        Self {
            model,
            rows: Rows::of(prompts, group),
            options,
            logits: Vec::new(),
            scores: Vec::new(),
            tokens: Vec::new(),
            probabilities: Vec::new(),
        }
    }

    /// Gives up the model and the rows.
    pub fn into_parts(self) -> (M, Vec<RowOutput>) {
        (self.model, self.rows.into_outputs())
    }

    fn advance(&mut self) -> Result<Vec<RowEvent>> {
        let mut events = self.rows.ended_at_once();
        if !self.rows.is_running() {
            return Ok(events);
        }
        let vocab = self.model.vocab_size();
        let per_row = self.options.top_k.clamp(1, vocab);
        self.candidates(vocab, per_row, &mut events)?;
        if !self.rows.is_running() {
            return Ok(events);
        }
        let resemblance = self.model.look_ahead(&self.tokens, per_row)?;
        let alpha = self.options.penalty_alpha;
        let (weight, penalty) = ((1.0 - alpha) as f32, alpha as f32);
        // What processors have banned cannot be chosen, however new it would be.
        let worth = |(probability, alike): (&f32, &f32)| match *probability {
            0.0 => f32::NEG_INFINITY,
            probability => weight * probability - penalty * alike,
        };
        let worth: Vec<f32> = self.probabilities.iter().zip(&resemblance).map(worth).collect();
        let copies: Vec<usize> = worth.chunks_exact(per_row).map(first_of_highest).collect();
        self.model.accept(&copies)?;

        let (tokens, logits, scores) = (&self.tokens, &self.logits, &self.scores);
        self.rows.for_each(|group, row| {
            let Some(place) = row.running_place() else { return };
            let token = tokens[place * per_row + copies[place]];
            let of = |all| <[f32]>::chunks_exact(all, vocab).nth(place).unwrap_or_default();
            let step = row.push(group, token, of(logits), of(scores)).map(|it| (token, it));
            events.push(row.event(step));
        });
        if let Some(places) = self.rows.retire() {
            self.model.reorder(&places)?;
        }
        Ok(events)
    }

    /// Finds the likeliest tokens of every row with their processed probabilities; padding for rows
    /// that have ended.
    fn candidates(
        &mut self,
        vocab: usize,
        per_row: usize,
        events: &mut Vec<RowEvent>,
    ) -> Result<()> {
        let Self { model, rows, logits, scores, tokens, probabilities, .. } = self;
        let raw = model.scores()?;
        scores.clear();
        scores.extend_from_slice(raw);
        let count = raw.len() / vocab * per_row;
        tokens.clear();
        tokens.resize(count, 0);
        probabilities.clear();
        probabilities.resize(count, 0.0);
        logits.clear();
        rows.for_each(|group, row| {
            if logits.is_empty() && (group.record.logits || group.record.logprobs.is_some()) {
                logits.extend_from_slice(raw);
            }
            let Some(place) = row.running_place() else {
                if let Some(place) = row.place() {
                    tokens[place * per_row..][..per_row].fill(group.pad);
                }
                return;
            };
            let scores = &mut scores[place * vocab..][..vocab];
            let best = group.rules.processors.process(&row.context(), scores);
            match best.and_then(|()| likeliest(scores, per_row)) {
                Ok(best) => {
                    for (at, (token, probability)) in best.into_iter().enumerate() {
                        tokens[place * per_row + at] = token;
                        probabilities[place * per_row + at] = probability;
                    }
                }
                Err(e) => {
                    let logits = &raw[place * vocab..][..vocab];
                    let e = group.rules.processors.explain(e, &row.context(), logits);
                    events.push(row.event(Err(e.into())));
                }
            }
        });
        Ok(())
    }
}

/// The `count` likeliest tokens of a row and their probabilities.
fn likeliest(scores: &[f32], count: usize) -> Processed<Vec<(u32, f32)>> {
    let max = mlxgk_torch::max(scores);
    let sum = mlxgk_torch::sum_of_exp(scores, max);
    if !sum.is_finite() {
        greedy(scores)?;
        let what = "no token can be chosen: a score is infinitely high";
        return Err(Error::new(ErrorKind::NoTokenAllowed, what));
    }
    let mut best = TopK::new(count, scores.len());
    best.offer(scores, 0.0);
    let probability = |score: f32| mlxgk_torch::exp(score - max) * (1.0 / sum);
    Ok(best.finish().into_iter().map(|it| (it.place as u32, probability(it.score))).collect())
}

/// The place of the first of the highest values, as torch takes it.
fn first_of_highest(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

impl<M: Lookahead> TokenLoop for ContrastiveLoop<M> {
    fn wait(&mut self) -> Result<()> {
        self.model.scores().map(drop)
    }

    fn step(&mut self) -> Option<Result<Vec<RowEvent>>> {
        let step = self.advance();
        match &step {
            Ok(events) if events.is_empty() => return None,
            Ok(_) => {}
            Err(_) => self.rows.clear(),
        }
        Some(step)
    }

    fn leave(&mut self, row: RowId) -> bool {
        self.rows.leave(row)
    }

    fn finish(self: Box<Self>) -> Result<LoopOutput> {
        Ok(LoopOutput { rows: self.rows.into_outputs(), ..LoopOutput::default() })
    }
}
