//! The loop: guess, check in one pass, keep what is accepted (HF `_assisted_decoding`).

use mlxgk_logits_processors::{Context, LogitsProcessor};

use super::{
    CandidateGenerator, Candidates, DraftContext, Guide, Speculative,
    speculative_sampler::{SpeculativeSampler, best_of_both},
};
use crate::{
    Chooser, ErrorKind, FinishReason, LoopOutput, Record, Result, RowEvent, RowGroup, RowId,
    RowOutcome, RowOutput, Rules, TokenLoop, rows::Row,
};

/// How many guesses were accepted.
///
/// See the example of [`AssistedLoop`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acceptance {
    /// Tokens guessed.
    pub guessed: usize,
    /// Those that were accepted.
    pub accepted: usize,
    /// Tokens that a grammar left no choice of and that were checked several at a time; they do not
    /// count as guesses.
    pub forced: usize,
    /// Turns: passes of the model after the prompt's, and the one token that the prompt's gave.
    pub turns: usize,
}

impl Acceptance {
    /// The share of guesses that were accepted; `None` where nothing was guessed.
    pub fn rate(&self) -> Option<f64> {
        (self.guessed > 0).then(|| self.accepted as f64 / self.guessed as f64)
    }
}

/// One row being continued, several tokens at a time.
///
/// Each step adds at least one token. They are those that [`SampleLoop`](crate::SampleLoop) gives
/// without help where nothing is drawn, or where the guesses come without scores and every row has a
/// stream of its own; otherwise they are distributed alike.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     AssistedLoop, DecoderSession, LeftPadded, Limits, PromptLookup, RowGroup, TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompt = [5, 9, 14, 5, 9];
/// let prompts = LeftPadded::new(&[prompt.to_vec()], 0)?;
/// let session = DecoderSession::prefill(&model, &prompts, 64, NoHook)?;
/// let group = RowGroup::greedy(Limits { max_new_tokens: 6, eos: vec![] });
/// let mut it = AssistedLoop::new(session, PromptLookup::new(3, 2)?, &prompt, group);
/// while it.step().transpose()?.is_some() {}
/// let acceptance = it.acceptance();
/// assert!(acceptance.guessed >= 3); // what followed 5, 9 before
/// println!("{:?} of the guesses were accepted", acceptance.rate());
/// assert_eq!(it.into_parts().1.tokens.len(), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AssistedLoop<'a, M> {
    model: M,
    generator: Box<dyn CandidateGenerator + 'a>,
    group: RowGroup,
    ensemble_weight: Option<f64>,
    guide: Option<Guide<'a>>,
    row: Row,
    /// How many tokens of the row the model was fed.
    fed: usize,
    acceptance: Acceptance,
    ended: bool,
}

/// A token, and what is to be recorded of it.
struct Accepted {
    token: u32,
    logits: Vec<f32>,
    scores: Vec<f32>,
}

impl<'a, M: Speculative> AssistedLoop<'a, M> {
    /// Continues `prompt`, which `model` has been fed, with the help of `generator`.
    pub fn new(
        model: M,
        generator: impl CandidateGenerator + 'a,
        prompt: &[u32],
        group: RowGroup,
    ) -> Self {
        Self {
            model,
            generator: Box::new(generator),
            ended: false,
            ensemble_weight: None,
            guide: None,
            row: Row::new(RowId::new(0), 0, prompt, 0),
            fed: prompt.len(),
            acceptance: Acceptance::default(),
            group,
        }
    }

    /// Lets the draft's scores count by `1 - weight` in what is accepted (`assistant_ensemble_weight`):
    /// more guesses are, and the outcome is no longer the model's alone.
    #[must_use]
    pub fn ensemble_weight(self, weight: Option<f64>) -> Self {
        Self { ensemble_weight: weight, ..self }
    }

    /// Moves the model's scores away from those of another text (`guidance_scale`).
    #[must_use]
    pub fn guide(self, guide: Option<Guide<'a>>) -> Self {
        Self { guide, ..self }
    }

    /// How many guesses were accepted so far.
    pub fn acceptance(&self) -> Acceptance {
        self.acceptance
    }

    /// Gives up the model and the row.
    pub fn into_parts(self) -> (M, RowOutput) {
        (self.model, self.row.into_output())
    }

    /// A turn: guess, check, and take what is accepted. Tokens that were taken before something fails
    /// are in `events`.
    fn turn(&mut self, events: &mut Vec<RowEvent>) -> Result<()> {
        let len = self.row.tokens.len();
        let forced = self.forced()?;
        let is_forced = !forced.tokens.is_empty();
        let guess = if is_forced { forced } else { self.guess()? };
        // What the prompt's pass left: the scores after the last token fed. After any later turn
        // the last token is still to be fed.
        let before = if self.fed == len { self.model.scores()?.to_vec() } else { Vec::new() };
        self.row.tokens.extend_from_slice(&guess.tokens);
        let unfed = &self.row.tokens[self.fed..];
        if !unfed.is_empty() {
            self.model.feed_several(unfed)?;
            self.fed = self.row.tokens.len();
        }
        let accepted = self.check(&before, &guess, len);
        self.row.tokens.truncate(len);
        let mut count = 0;
        for Accepted { token, logits, scores } in accepted? {
            let finish_reason = self.row.push(&mut self.group, token, &logits, &scores)?;
            events.push(self.row.event(Ok((token, finish_reason))));
            count += 1;
            if finish_reason.is_some() {
                break;
            }
        }
        // The last token is the model's own; those before it are guesses that were accepted, and it
        // was not fed unless it is one of them and the row ended there.
        let held = (self.row.tokens.len() - 1).min(self.fed);
        if self.fed > held {
            self.model.roll_back(self.fed - held)?;
            self.fed = held;
        }
        let accepted = (count - 1).min(guess.tokens.len());
        self.acceptance.turns += 1;
        if is_forced {
            self.acceptance.forced += accepted;
        } else {
            self.acceptance.guessed += guess.tokens.len();
            self.acceptance.accepted += accepted;
            self.generator.update(guess.tokens.len(), accepted);
        }
        Ok(())
    }

    /// What processors leave no choice of, to be checked like a guess.
    fn forced(&self) -> Result<Candidates> {
        let mut tokens = self.group.rules.processors.forced_tokens(&self.row.context())?;
        tokens.truncate(self.budget().min(self.max_checkable()));
        Ok(Candidates { tokens, scores: Vec::new() })
    }

    /// How many tokens are worth guessing: with one more from the model the row is full.
    fn budget(&self) -> usize {
        self.group.limits().max_new_tokens - self.row.new_tokens() - 1
    }

    /// How many tokens the model can check in one pass.
    fn max_checkable(&self) -> usize {
        self.model.room().saturating_sub(self.row.tokens.len() - self.fed)
    }

    fn guess(&mut self) -> Result<Candidates> {
        let mut draft = DraftContext {
            context: self.row.context(),
            budget: self.budget(),
            max_checkable: self.max_checkable(),
            eos: &self.group.rules.stop.limits().eos,
            processors: &self.group.rules.processors,
            guide: self.guide.as_mut(),
            vocab_size: self.model.vocab_size(),
            wants_scores: self.ensemble_weight.is_some()
                || matches!(self.group.rules.chooser, Chooser::Sample(_)),
        };
        // What is tried out here leaves no trace in what the warpers remember of the row.
        let state = self.group.rules.chooser.state(0);
        let guess = self.generator.candidates(&mut draft, &mut self.group.rules.chooser);
        self.group.rules.chooser.set_state(0, state);
        guess
    }

    /// The tokens from position `len` on: the guesses that are accepted and one more. With each come
    /// the logits and the processed scores, where they are to be recorded.
    fn check(&mut self, before: &[f32], guess: &Candidates, len: usize) -> Result<Vec<Accepted>> {
        let vocab = self.model.vocab_size();
        let count = guess.tokens.len();
        let fed = if before.is_empty() || count > 0 { self.model.scores()? } else { &[] };
        let rows = || before.chunks_exact(vocab).chain(fed.chunks_exact(vocab));
        // Where tokens from before the guesses were fed along, theirs are the first rows.
        let skipped = rows().count() - (count + 1);
        let mut guided = Vec::new();
        if let Some(guide) = &mut self.guide {
            guided.extend(rows().skip(skipped).flatten());
            guide.apply(&self.row.tokens[len - 1..], &mut guided)?;
        }
        let rows: Box<dyn Iterator<Item = &[f32]>> = if guided.is_empty() {
            Box::new(rows().skip(skipped))
        } else {
            Box::new(guided.chunks_exact(vocab))
        };
        let weight = self.ensemble_weight;
        let RowGroup { rules, record, .. } = &mut self.group;
        let Rules { processors, chooser, .. } = rules;
        let mut sampler = match chooser {
            Chooser::Sample(sampling) if !guess.scores.is_empty() => {
                Some(SpeculativeSampler::new(guess, weight, sampling))
            }
            _ => None,
        };
        let mut accepted = Vec::with_capacity(count + 1);
        let (mut scores, mut warped) = (Vec::new(), Vec::new());
        for (place, logits) in rows.enumerate() {
            let tokens = &self.row.tokens[..len + place];
            let context = Context { tokens, ..self.row.context() };
            scores.clear();
            scores.extend_from_slice(logits);
            let explain = |e| processors.explain(e, &context, logits);
            processors.process(&context, &mut scores).map_err(explain)?;
            let token = match (&mut sampler, &mut *chooser) {
                (Some(sampler), Chooser::Sample(sampling)) => {
                    sampling.warp(0, &context, &mut scores).map_err(explain)?;
                    warped.clone_from(&scores);
                    let token = sampler.token(place, &scores, sampling)?;
                    sampling.observe(0, token);
                    token
                }
                (_, chooser) => {
                    let draft = guess.scores.get(place * vocab..(place + 1) * vocab);
                    let chosen = match (weight, draft) {
                        (Some(weight), Some(draft)) => {
                            warped.clone_from(&scores);
                            let both = best_of_both(&scores, draft, weight);
                            chooser.choose(0, &context, &both)
                        }
                        _ if record.scores => {
                            chooser.choose_keeping(0, &context, &scores, &mut warped)
                        }
                        _ => chooser.choose(0, &context, &scores),
                    };
                    chosen.map_err(explain)?
                }
            };
            let logits = if *record == Record::default() { Vec::new() } else { logits.to_vec() };
            let scores = if record.scores { warped.clone() } else { Vec::new() };
            accepted.push(Accepted { token, logits, scores });
            if guess.tokens.get(place) != Some(&token) {
                break;
            }
        }
        if sampler.is_none() {
            // torch draws at all positions at once.
            (accepted.len()..count + 1).for_each(|_| chooser.skip(0, vocab));
        }
        Ok(accepted)
    }
}

impl<M: Speculative> TokenLoop for AssistedLoop<'_, M> {
    fn wait(&mut self) -> Result<()> {
        self.model.scores().map(drop)
    }

    fn step(&mut self) -> Option<Result<Vec<RowEvent>>> {
        if self.ended || !self.row.is_running() {
            return None;
        }
        if self.group.limits().max_new_tokens == 0 {
            self.ended = true;
            let outcome = RowOutcome::Finished(FinishReason::Length);
            return Some(Ok(vec![RowEvent { row: self.row.id, outcome }]));
        }
        let mut events = Vec::new();
        match self.turn(&mut events) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Model => {
                self.ended = true;
                return Some(Err(e));
            }
            Err(e) => events.push(self.row.event(Err(e))),
        }
        Some(Ok(events))
    }

    fn leave(&mut self, row: RowId) -> bool {
        let leaves = row == self.row.id && self.row.is_running() && !self.ended;
        self.ended |= leaves;
        leaves
    }

    fn finish(self: Box<Self>) -> Result<LoopOutput> {
        let acceptance = Some(self.acceptance);
        let (model, row) = self.into_parts();
        Ok(LoopOutput { rows: vec![row], acceptance, cache: model.into_cache() })
    }
}

impl<M> std::fmt::Debug for AssistedLoop<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut it = f.debug_struct("AssistedLoop");
        it.field("row", &self.row).field("acceptance", &self.acceptance);
        it.finish_non_exhaustive()
    }
}
