//! What a request comes to: one account of its pieces and sequences, whatever loop made them.

use std::time::{Duration, Instant};

use mlxgk_decoding_strategies::{
    Acceptance, FinishReason, LoopOutput, Recorded, RowId, RowOutcome, RowOutput, TokenLogprobs,
};
use mlxgk_generation_config::Warning;
use mlxgk_kv_cache::KvCache;
use mlxgk_logits_processors::log_softmax;
use mlxgk_steering::Verdict;

use crate::{
    Attentions, HiddenStates, Model, Result, attentions::AttentionRecorder, hidden::HiddenRecorder,
    passes::Fed, plan::Plan, text::RowText,
};

/// One new token as it is made.
///
/// ```
/// use mlx_genkit::{ComputeDtype, FinishReason, GenerationConfig, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig { max_new_tokens: Some(3), ..Default::default() };
/// let stream = model.stream(Request::new("Once upon a time").config(config))?;
/// let pieces = stream.collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(pieces[0].finish_reason, None);
/// assert_eq!(pieces[2].finish_reason, Some(FinishReason::Length));
/// let text: String = pieces.iter().map(|it| &*it.text).collect();
/// println!("{text}");
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Piece {
    /// Index of the sequence in [`Generation::sequences`].
    pub sequence: usize,
    /// The token.
    pub token: u32,
    /// The text that became certain with it: never half a character, often empty.
    pub text: String,
    /// How likely the token was, where [`Request::logprobs`](crate::Request::logprobs) asks for it.
    pub logprobs: Option<TokenLogprobs>,
    /// Why the sequence ended with it; `None` while it runs.
    pub finish_reason: Option<FinishReason>,
}

/// One finished sequence.
///
/// ```
/// use mlx_genkit::{ComputeDtype, FinishReason, GenerationConfig, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig {
///     num_beams: Some(3),
///     num_return_sequences: Some(2),
///     max_new_tokens: Some(4),
///     ..Default::default()
/// };
/// let sequences = model.generate(Request::new("Once upon a time").config(config))?.sequences;
/// // Of a prompt's beams, the best comes first.
/// assert!(sequences[0].score >= sequences[1].score);
/// assert_eq!(sequences[0].finish_reason, FinishReason::Length);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sequence {
    /// Which prompt it continues.
    pub prompt_index: usize,
    /// The new tokens, up to and including the end token; no padding.
    pub tokens: Vec<u32>,
    /// Their text without special tokens; empty where the model has no tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// HF's `sequences_scores`: the sum of the tokens' log-probabilities, divided by their number to
    /// the power of the length penalty. `None` outside beam search.
    pub score: Option<f32>,
    /// HF's `beam_indices`: for each token, the row (prompt · `num_beams` + beam) whose scores it was
    /// chosen from. `None` outside beam search.
    pub beam_indices: Option<Vec<usize>>,
    /// What each token added to the sum in `score`: its processed log-probability. `None` outside beam
    /// search.
    pub beam_scores: Option<Vec<f32>>,
    /// What else was to be recorded of each token: HF's `scores` and `logits`, and log-probabilities.
    pub recorded: Recorded,
    /// HF's `hidden_states`, where they were asked for (`output_hidden_states`).
    pub hidden_states: Option<HiddenStates>,
    /// HF's `attentions`, where they were asked for (`output_attentions`).
    pub attentions: Option<Attentions>,
    /// What the [guardrails](crate::Guardrails) say of it, where there are any.
    pub verdict: Option<Verdict>,
}

impl Sequence {
    /// The score that each token was chosen by, from the [recorded](Self::recorded) scores: HF's
    /// `compute_transition_scores`. With `normalize`, its log-probability among them. Of beams, whose
    /// scores are log-probabilities from the start, these are the [`beam_scores`](Self::beam_scores).
    ///
    /// `None` where scores were not recorded (`output_scores`).
    ///
    /// # Errors
    /// When there is nothing to normalize, because all tokens were banned.
    pub fn transition_scores(&self, normalize: bool) -> Result<Option<Vec<f32>>> {
        if let Some(scores) = &self.beam_scores {
            return Ok((!normalize).then(|| scores.clone()));
        }
        if self.recorded.scores.len() != self.tokens.len() {
            return Ok(None);
        }
        let score = |(scores, &token): (&Vec<f32>, &u32)| {
            if !normalize {
                return Ok(scores[token as usize]);
            }
            let mut scores = scores.clone();
            log_softmax(&mut scores)?;
            Ok(scores[token as usize])
        };
        self.recorded.scores.iter().zip(&self.tokens).map(score).collect::<Result<_>>().map(Some)
    }
}

/// The outcome of a request: its sequences, and how long they took.
///
/// ```
/// use mlx_genkit::{ComputeDtype, GenerationConfig, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig { max_new_tokens: Some(3), ..Default::default() };
/// let prompts = [vec![5, 17, 300], vec![42]];
/// let generation = model.generate(Request::batch(prompts).config(config))?;
/// assert_eq!(generation.prompt_tokens, [3, 1]);
/// assert_eq!(generation.generated_tokens(), 6);
/// let rate = generation.generated_tokens() as f64 / generation.decode.as_secs_f64();
/// println!("{rate:.0} tokens per second; {:?} for the prompts", generation.prefill);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// Ordered by prompt, then best first; where there are no beams, by draw.
    pub sequences: Vec<Sequence>,
    /// Tokens of each prompt, padding left out.
    pub prompt_tokens: Vec<usize>,
    /// From the request to the scores of the first new token.
    pub prefill: Duration,
    /// From there to the end.
    pub decode: Duration,
    /// The warnings about the configuration that HF would give.
    pub warnings: Vec<Warning>,
    /// How many guesses were accepted, where there was an assistant or prompt lookup.
    pub acceptance: Option<Acceptance>,
    /// What `token_healing` made of the prompts; empty where it was not asked for. Where a last token
    /// became a longer one, the text of the prompt's sequences begins with what that adds.
    pub healed_prompts: Vec<Vec<u32>>,
    /// Tokens of the prompt that a cache held, so that they were not read again.
    pub cached_tokens: usize,
}

impl Generation {
    /// New tokens over all sequences.
    pub fn generated_tokens(&self) -> usize {
        self.sequences.iter().map(|it| it.tokens.len()).sum()
    }
}

/// A sequence on its way.
#[derive(Debug)]
struct Row {
    /// None with beams, whose texts are known at the end only.
    text: Option<RowText>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Ended,
    /// There is no sequence of it.
    Failed,
}

/// A request being answered: what the events of its rows mean to the caller.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    model: &'a Model,
    /// The id of the first row.
    first: RowId,
    rows: Vec<Row>,
    copies: usize,
    prompts: Vec<Vec<u32>>,
    /// The rest of each healed prompt.
    beyond: Vec<String>,
    trimmed: Vec<String>,
    shown: Vec<u32>,
    hidden: Option<HiddenRecorder>,
    attentions: Option<AttentionRecorder>,
    warnings: Vec<Warning>,
    begun: Instant,
    prefilled: Option<Instant>,
    cached: usize,
}

impl<'a> Answer<'a> {
    /// Of a plan whose prompts are healed.
    pub(crate) fn new(plan: &Plan<'a>, first: RowId) -> Result<Self> {
        let beyond: Vec<String> = plan.healing.iter().map(|it| it.beyond.clone()).collect();
        let mut answer = Self {
            model: plan.model,
            first,
            rows: Vec::new(),
            copies: plan.copies,
            prompts: plan.prompts.clone(),
            beyond,
            trimmed: plan.trimmed.clone(),
            shown: plan.shown.clone(),
            hidden: plan.hidden.clone(),
            attentions: plan.attentions.clone(),
            warnings: plan.warnings().to_vec(),
            begun: plan.begun,
            prefilled: None,
            cached: 0,
        };
        for row in 0..plan.prompts.len() * plan.copies {
            let text = || answer.text_of(row / plan.copies);
            let text = plan.streams().then(text).transpose()?;
            answer.rows.push(Row { text, state: State::Running });
        }
        Ok(answer)
    }

    /// The text of a sequence of a prompt, still without tokens.
    fn text_of(&self, prompt: usize) -> Result<RowText> {
        let beyond = self.beyond.get(prompt).map_or("", String::as_str);
        let texts = (self.trimmed.as_slice(), self.shown.as_slice());
        RowText::new(self.model, &self.prompts[prompt], beyond, texts)
    }

    /// How many sequences the request makes; with beams, before the best are taken.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Which of the request's sequences a row is.
    pub(crate) fn sequence(&self, row: RowId) -> usize {
        (row.get() - self.first.get()) as usize
    }

    pub(crate) fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Notes how many of the prompt's tokens a cache held.
    pub(crate) fn note_cached(&mut self, tokens: usize) {
        self.cached = tokens;
    }

    /// Whether a sequence has not ended.
    pub(crate) fn is_running(&self) -> bool {
        self.rows.iter().any(|it| it.state == State::Running)
    }

    /// Notes that the scores of the first token are there.
    pub(crate) fn note_prefilled(&mut self) {
        self.prefilled.get_or_insert_with(Instant::now);
    }

    /// What an event of a row means: a piece, nothing, or that the sequence failed.
    pub(crate) fn piece(&mut self, row: RowId, outcome: RowOutcome) -> Result<Option<Piece>> {
        self.note_prefilled();
        let sequence = self.sequence(row);
        let (token, logprobs, finish_reason) = match outcome {
            RowOutcome::Token { token, logprobs, finish_reason } => {
                (token, logprobs, finish_reason)
            }
            RowOutcome::Failed(e) => {
                self.rows[sequence].state = State::Failed;
                return Err(self.named(sequence, e.into()));
            }
            _ => {
                self.rows[sequence].state = State::Ended;
                return Ok(None);
            }
        };
        let row = &mut self.rows[sequence];
        let text = row.text.as_mut().map(|it| it.push(token, finish_reason.is_some()));
        match text.transpose() {
            Ok(text) => {
                if finish_reason.is_some() {
                    row.state = State::Ended;
                }
                let text = text.unwrap_or_default();
                Ok(Some(Piece { sequence, token, text, logprobs, finish_reason }))
            }
            Err(e) => {
                row.state = State::Failed;
                Err(self.named(sequence, e))
            }
        }
    }

    /// Ends all sequences that run, which a loop's own end says nothing of.
    pub(crate) fn end(&mut self) {
        let running = self.rows.iter_mut().filter(|it| it.state == State::Running);
        running.for_each(|it| it.state = State::Ended);
    }

    /// Notes that all sequences that ran have failed, and says which they are.
    pub(crate) fn fail_all(&mut self) -> Vec<usize> {
        let is_running = |it: &usize| self.rows[*it].state == State::Running;
        let running: Vec<usize> = (0..self.rows.len()).filter(is_running).collect();
        running.iter().for_each(|&it| self.rows[it].state = State::Failed);
        running
    }

    /// Says which prompt of several an error is about.
    fn named(&self, sequence: usize, error: crate::Error) -> crate::Error {
        match self.prompts.len() {
            1 => error,
            _ => error.of_prompt(sequence / self.copies),
        }
    }

    /// Assembles the sequences. Those that have not ended count as cut off by length.
    pub(crate) fn finish(mut self, output: LoopOutput) -> Result<(Generation, Option<KvCache>)> {
        let end = Instant::now();
        let prefilled = self.prefilled.unwrap_or(end);
        let mut rows = std::mem::take(&mut self.rows).into_iter();
        let mut sequences = Vec::with_capacity(output.rows.len());
        for (index, output) in output.rows.into_iter().enumerate() {
            let (text, state) = rows.next().map_or((None, State::Ended), |it| (it.text, it.state));
            if state != State::Failed {
                sequences.push(self.sequence_of(index, output, text)?);
            }
        }
        let healed_prompts = if self.beyond.is_empty() { Vec::new() } else { self.prompts.clone() };
        let generation = Generation {
            sequences,
            prompt_tokens: self.prompts.iter().map(Vec::len).collect(),
            prefill: prefilled - self.begun,
            decode: end - prefilled,
            warnings: self.warnings,
            acceptance: output.acceptance,
            healed_prompts,
            cached_tokens: self.cached,
        };
        Ok((generation, output.cache))
    }

    fn sequence_of(&self, index: usize, row: RowOutput, text: Option<RowText>) -> Result<Sequence> {
        let prompt_index = row.beam.as_ref().map_or(index / self.copies, |it| it.prompt_index);
        let text = match text {
            Some(text) => text,
            None => {
                let mut text = self.text_of(prompt_index)?;
                for &token in &row.tokens {
                    text.push(token, false)?;
                }
                text
            }
        };
        let id = |index: usize| RowId::new(self.first.get() + index as u64);
        let fed = Fed {
            row: id(index),
            prompt_row: id(prompt_index * self.copies),
            prompt_len: self.prompts[prompt_index].len(),
            tokens: row.tokens.len(),
        };
        let hidden_states = self.hidden.as_ref().map(|it| it.states(&fed)).transpose()?;
        let attentions = self.attentions.as_ref().map(|it| it.weights(&fed)).transpose()?;
        let (score, beam_indices, beam_scores) = match row.beam {
            Some(it) => (Some(it.score), Some(it.beam_indices), Some(it.transition_scores)),
            None => (None, None, None),
        };
        Ok(Sequence {
            prompt_index,
            text: text.finish()?,
            tokens: row.tokens,
            finish_reason: row.finish_reason.unwrap_or(FinishReason::Length),
            score,
            beam_indices,
            beam_scores,
            recorded: row.recorded,
            hidden_states,
            attentions,
            verdict: None,
        })
    }
}
