//! The loop: guess, check in one pass, keep what stands (HF `_assisted_decoding`).

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList};

use super::{
    CandidateGenerator, Candidates, Speculative, Turn,
    verdict::{Verdict, best_of_both},
};
use crate::{Decoded, Keep, Result, Rule, Stopping};

/// How well the guesses did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// Tokens guessed.
    pub guessed: usize,
    /// Those that stood.
    pub accepted: usize,
    /// Tokens that a grammar left no choice of and that were checked several at a time; they count as
    /// no guesses.
    pub forced: usize,
    /// Turns: passes of the model after the prompt's, and the one token that the prompt's gave.
    pub turns: usize,
}

impl Acceptance {
    /// The share of guesses that stood; `None` where nothing was guessed.
    pub fn rate(&self) -> Option<f64> {
        (self.guessed > 0).then(|| self.accepted as f64 / self.guessed as f64)
    }
}

/// One row being continued, several tokens at a time.
///
/// An iterator over turns; each item holds the tokens that a turn added, at least one. They are those
/// that [`Decoding`](crate::Decoding) gives without help where nothing is drawn, or where the guesses
/// come without scores and every row has a stream of its own; else they are distributed alike.
pub struct AssistedDecoding<'a, M> {
    model: M,
    generator: Box<dyn CandidateGenerator + 'a>,
    processors: ProcessorList,
    rule: Rule,
    stopping: Stopping,
    keep: Keep,
    ensemble_weight: Option<f64>,
    prompt_len: usize,
    /// Prompt and new tokens.
    text: Vec<u32>,
    /// How many tokens of `text` the model was fed.
    fed: usize,
    row: Decoded,
    acceptance: Acceptance,
    failed: bool,
}

/// A token, and the logits and processed scores it was chosen by.
type Said = (u32, Vec<f32>, Vec<f32>);

impl<'a, M: Speculative> AssistedDecoding<'a, M> {
    /// Continues `prompt`, which `model` has been fed, with the help of `generator`.
    pub fn new(
        model: M,
        generator: Box<dyn CandidateGenerator + 'a>,
        prompt: &[u32],
        processors: ProcessorList,
        rule: Rule,
        stopping: impl Into<Stopping>,
    ) -> Self {
        Self {
            model,
            generator,
            processors,
            rule,
            stopping: stopping.into(),
            keep: Keep::default(),
            ensemble_weight: None,
            prompt_len: prompt.len(),
            text: prompt.to_vec(),
            fed: prompt.len(),
            row: Decoded::default(),
            acceptance: Acceptance::default(),
            failed: false,
        }
    }

    /// Keeps more of each token than the token.
    #[must_use]
    pub fn keep(self, keep: Keep) -> Self {
        Self { keep, ..self }
    }

    /// Lets the draft have a say of `1 - weight` in what stands (`assistant_ensemble_weight`): more
    /// guesses stand, and the outcome is no longer the model's alone.
    #[must_use]
    pub fn ensemble_weight(self, weight: Option<f64>) -> Self {
        Self { ensemble_weight: weight, ..self }
    }

    /// The row as far as it got.
    pub fn row(&self) -> &Decoded {
        &self.row
    }

    /// When the row ends.
    pub fn stopping(&self) -> &Stopping {
        &self.stopping
    }

    /// How well the guesses did so far.
    pub fn acceptance(&self) -> Acceptance {
        self.acceptance
    }

    /// Gives up the model and the row.
    pub fn into_parts(self) -> (M, Decoded) {
        (self.model, self.row)
    }

    /// Waits until the scores of the first token are there.
    ///
    /// # Errors
    /// When the model fails.
    pub fn wait(&mut self) -> Result<()> {
        self.model.scores().map(|_| ())
    }

    fn turn(&mut self) -> Result<Vec<u32>> {
        let len = self.text.len();
        let forced = self.forced()?;
        let is_forced = !forced.tokens.is_empty();
        let guess = if is_forced { forced } else { self.guess()? };
        // What the prompt's pass left: the scores behind the last token fed. After any later turn
        // the last token is still to be fed.
        let before = if self.fed == len { self.model.scores()?.to_vec() } else { Vec::new() };
        let first = self.fed;
        self.text.extend_from_slice(&guess.tokens);
        if first < self.text.len() {
            self.model.feed_several(&self.text[first..])?;
            self.fed = self.text.len();
        }
        let said = self.check(&before, &guess, len);
        self.text.truncate(len);
        let said = said?;

        let mut added = Vec::with_capacity(said.len());
        for (token, logits, scores) in said {
            self.text.push(token);
            self.row.tokens.push(token);
            self.row.kept.push(self.keep, token, &logits, &scores)?;
            added.push(token);
            let context = Context::new(&self.text, self.prompt_len);
            self.row.finish_reason = self.stopping.check(&context)?;
            if self.row.finish_reason.is_some() {
                break;
            }
        }
        // The last token is the model's own; those before it are guesses that stood, and it was not
        // fed unless it is one of them and the row ended there.
        let held = (self.text.len() - 1).min(self.fed);
        if self.fed > held {
            self.model.roll_back(self.fed - held)?;
            self.fed = held;
        }
        let accepted = (added.len() - 1).min(guess.tokens.len());
        self.acceptance.turns += 1;
        if is_forced {
            self.acceptance.forced += accepted;
        } else {
            self.acceptance.guessed += guess.tokens.len();
            self.acceptance.accepted += accepted;
            self.generator.update(guess.tokens.len(), accepted);
        }
        Ok(added)
    }

    /// What processors leave no choice of, to be checked like a guess.
    fn forced(&self) -> Result<Candidates> {
        let mut tokens =
            self.processors.forced_tokens(&Context::new(&self.text, self.prompt_len))?;
        tokens.truncate(self.room().min(self.checkable()));
        Ok(Candidates { tokens, scores: Vec::new() })
    }

    /// How many tokens are worth guessing: with one more from the model the row is full.
    fn room(&self) -> usize {
        self.stopping.stop().max_new_tokens - self.row.tokens.len() - 1
    }

    /// How many tokens the model can check in one pass.
    fn checkable(&self) -> usize {
        self.model.room().saturating_sub(self.text.len() - self.fed)
    }

    fn guess(&mut self) -> Result<Candidates> {
        let turn = Turn {
            context: Context::new(&self.text, self.prompt_len),
            room: self.room(),
            checkable: self.checkable(),
            eos: &self.stopping.stop().eos,
            processors: &self.processors,
            vocab_size: self.model.vocab_size(),
        };
        // What is tried out here leaves no trace in what the warpers remember of the row.
        let state = self.rule.state(0);
        let guess = self.generator.candidates(&turn, &mut self.rule);
        self.rule.set_state(0, state);
        guess
    }

    /// What is said from position `len` on: the guesses that stand and one token more. With each
    /// token come the logits and the processed scores, where they are to be kept.
    fn check(&mut self, before: &[f32], guess: &Candidates, len: usize) -> Result<Vec<Said>> {
        let vocab = self.model.vocab_size();
        let count = guess.tokens.len();
        let fed = if before.is_empty() || count > 0 { self.model.scores()? } else { &[] };
        let rows = || before.chunks_exact(vocab).chain(fed.chunks_exact(vocab));
        // Where tokens from before the guesses were fed along, theirs are the first rows.
        let skipped = rows().count() - (count + 1);
        let weight = self.ensemble_weight;
        let mut verdict = match &mut self.rule {
            Rule::Sample(sampling) if !guess.scores.is_empty() => {
                Some(Verdict::new(guess, weight, sampling))
            }
            _ => None,
        };
        let mut said = Vec::with_capacity(count + 1);
        let mut warped = Vec::new();
        for (place, logits) in rows().skip(skipped).enumerate() {
            let context = Context::new(&self.text[..len + place], self.prompt_len);
            let mut scores = logits.to_vec();
            self.processors.process(&context, &mut scores)?;
            let token = match (&mut verdict, &mut self.rule) {
                (Some(verdict), Rule::Sample(sampling)) => {
                    sampling.warp(0, &context, &mut scores)?;
                    warped.clone_from(&scores);
                    let token = verdict.token(place, &scores, sampling)?;
                    sampling.observe(0, token);
                    token
                }
                (_, rule) => {
                    let draft = guess.scores.get(place * vocab..(place + 1) * vocab);
                    match (weight, draft) {
                        (Some(weight), Some(draft)) => {
                            warped.clone_from(&scores);
                            let both = best_of_both(&scores, draft, weight);
                            rule.choose(0, &context, &both)?
                        }
                        _ => rule.choose_keeping(0, &context, &scores, &mut warped)?,
                    }
                }
            };
            let logits = if self.keep == Keep::default() { Vec::new() } else { logits.to_vec() };
            let scores = if self.keep.scores { warped.clone() } else { Vec::new() };
            said.push((token, logits, scores));
            if guess.tokens.get(place) != Some(&token) {
                break;
            }
        }
        if verdict.is_none() {
            // torch draws at all positions at once.
            (said.len()..count + 1).for_each(|_| self.rule.skip(0, vocab));
        }
        Ok(said)
    }
}

impl<M: Speculative> Iterator for AssistedDecoding<'_, M> {
    type Item = Result<Vec<u32>>;

    fn next(&mut self) -> Option<Self::Item> {
        let nothing = self.stopping.stop().max_new_tokens == 0;
        if self.failed || nothing || self.row.finish_reason.is_some() {
            return None;
        }
        let turn = self.turn();
        self.failed = turn.is_err();
        Some(turn)
    }
}

impl<M> std::fmt::Debug for AssistedDecoding<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut it = f.debug_struct("AssistedDecoding");
        it.field("row", &self.row).field("acceptance", &self.acceptance);
        it.finish_non_exhaustive()
    }
}
