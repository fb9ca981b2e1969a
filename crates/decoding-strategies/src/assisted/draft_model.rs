//! Guesses from a smaller model.

use mlxgk_logits_processors::{Context, Stage};
use mlxgk_torch::softmax;

use super::{CandidateGenerator, Candidates, DraftContext, Speculative};
use crate::{Chooser, Result};

/// How the number of guesses changes with their success (`num_assistant_tokens_schedule`).
///
/// See the example of [`AssistantOptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// It does not.
    #[default]
    Constant,
    /// Two more after a turn in which all were accepted, one fewer after any other (HF `heuristic` and
    /// `heuristic_transient`, which differ in what the next request begins with).
    Heuristic,
}

/// How a draft model guesses: fields of the draft model's own generation config, as in HF.
///
/// ```
/// use mlxgk_decoding_strategies::{AssistantOptions, Schedule};
///
/// // transformers' defaults: 20 guesses at a time, fewer where the draft model is unsure.
/// let usual = AssistantOptions::default();
/// assert_eq!((usual.num_tokens, usual.schedule), (20, Schedule::Constant));
/// assert_eq!(usual.confidence_threshold, 0.4);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AssistantOptions {
    /// Guesses per turn at most (`num_assistant_tokens`).
    pub num_tokens: usize,
    /// How that number changes.
    pub schedule: Schedule,
    /// The guess that is less likely than this is a turn's last (`assistant_confidence_threshold`);
    /// 0 puts no bound.
    pub confidence_threshold: f64,
}

impl Default for AssistantOptions {
    /// HF's defaults.
    fn default() -> Self {
        Self { num_tokens: 20, schedule: Schedule::Constant, confidence_threshold: 0.4 }
    }
}

/// Guesses what a smaller model with the same vocabulary would say (HF `AssistedCandidateGenerator`).
///
/// ```
/// use mlxgk_decoding_strategies::{
///     AssistantOptions, AssistedLoop, DecoderSession, DraftModel, LeftPadded, Limits, RowGroup,
///     TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompt = [5, 9, 14];
/// let prompts = LeftPadded::new(&[prompt.to_vec()], 0)?;
/// let session = || DecoderSession::prefill(&model, &prompts, 64, NoHook);
/// // The model drafts for itself, so that every guess is right.
/// let options =
///     AssistantOptions { num_tokens: 2, confidence_threshold: 0.0, ..Default::default() };
/// let draft = DraftModel::new(session()?, &prompt, options);
/// let group = RowGroup::greedy(Limits { max_new_tokens: 6, eos: vec![] });
/// let mut it = AssistedLoop::new(session()?, draft, &prompt, group);
/// while it.step().transpose()?.is_some() {}
/// assert_eq!(it.acceptance().rate(), Some(1.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DraftModel<D> {
    model: D,
    /// What the model was fed.
    fed: Vec<u32>,
    options: AssistantOptions,
}

impl<D: Speculative> DraftModel<D> {
    /// A draft model that has been fed `prompt`.
    pub fn new(model: D, prompt: &[u32], options: AssistantOptions) -> Self {
        Self { model, fed: prompt.to_vec(), options }
    }

    /// How it guesses now; the number of guesses follows the schedule.
    pub fn options(&self) -> AssistantOptions {
        self.options
    }

    /// Makes the model's scores those of what follows `text`.
    fn catch_up(&mut self, text: &[u32]) -> Result<()> {
        let same = self.fed.iter().zip(text).take_while(|(a, b)| a == b).count();
        if same == text.len() && same == self.fed.len() {
            return Ok(());
        }
        // At least the last token has to be fed, for the scores after it.
        let kept = same.min(text.len() - 1);
        if kept < self.fed.len() {
            self.model.roll_back(self.fed.len() - kept)?;
            self.fed.truncate(kept);
        }
        self.feed(&text[kept..])
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.model.feed_several(tokens)?;
        self.fed.extend_from_slice(tokens);
        Ok(())
    }
}

impl<D: Speculative> CandidateGenerator for DraftModel<D> {
    fn candidates(
        &mut self,
        draft: &mut DraftContext<'_, '_>,
        chooser: &mut Chooser,
    ) -> Result<Candidates> {
        let most = self.options.num_tokens.min(draft.budget).min(draft.max_checkable);
        if most == 0 {
            return Ok(Candidates::default());
        }
        self.catch_up(draft.context.tokens)?;
        let threshold = self.options.confidence_threshold;
        let reads_scores = draft.wants_scores || threshold > 0.0;
        let mut text = draft.context.tokens.to_vec();
        let mut guess = Candidates::default();
        let (mut scores, mut warped, mut probs) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let all = self.model.scores()?;
            scores.clear();
            scores.extend_from_slice(&all[all.len() - draft.vocab_size..]);
            if !draft.process(&text, &mut scores)? {
                return Ok(guess);
            }
            // A draft may know none of the tokens that are left.
            if scores.iter().all(|it| *it == f32::NEG_INFINITY) {
                return Ok(guess);
            }
            let context = Context { tokens: &text, ..draft.context };
            // In HF the draft gets the model's list of processors beside its own, and of both lists
            // whatever follows the caller's processors applies: warpers, watermark and
            // normalisation apply twice.
            chooser.warp(&context, &mut scores)?;
            for late in draft.processors.iter().filter(|it| it.stage() >= Stage::Temperature) {
                late.process(&context, &mut scores)?;
            }
            let token = if reads_scores {
                chooser.choose_keeping(0, &context, &scores, &mut warped)?
            } else {
                chooser.choose(0, &context, &scores)?
            };
            guess.tokens.push(token);
            if draft.wants_scores {
                guess.scores.extend_from_slice(&warped);
            }
            if guess.tokens.len() == most || draft.eos.contains(&token) {
                return Ok(guess);
            }
            if threshold > 0.0 {
                softmax(&warped, &mut probs);
                if f64::from(probs[token as usize]) < threshold {
                    return Ok(guess);
                }
            }
            text.push(token);
            self.feed(&[token])?;
        }
    }

    fn update(&mut self, guessed: usize, accepted: usize) {
        if self.options.schedule == Schedule::Heuristic {
            let count = self.options.num_tokens;
            self.options.num_tokens =
                if accepted == guessed { count + 2 } else { count.saturating_sub(1).max(1) };
        }
    }
}
