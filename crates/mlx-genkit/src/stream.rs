//! A request's tokens as they are made.

use std::{collections::VecDeque, time::Instant};

use mlxgk_decoding_strategies::{FinishReason, LeftPadded};
use mlxgk_generation_config::Warning;
use mlxgk_kv_cache::KvCache;
use mlxgk_tokenizer_bridge::{StopTrim, StreamDecoder};

use crate::{
    Error, ErrorKind, Generation, Model, Result, Sequence,
    generate::{Job, text},
    healing::beyond,
    hidden::HiddenRecorder,
    strategy::{Outcome, Strategy},
};

/// One new token as it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Index of the sequence in [`Generation::sequences`].
    pub sequence: usize,
    /// The token.
    pub token: u32,
    /// The text that became certain with it: never half a character, often empty.
    pub text: String,
}

/// A request being served: an iterator over its tokens.
pub struct TokenStream<'a> {
    model: &'a Model,
    strategy: Strategy<'a>,
    text: Vec<RowText<'a>>,
    ready: VecDeque<Piece>,
    copies: usize,
    hidden: Option<Hidden>,
    prompt_tokens: Vec<usize>,
    healed_prompts: Vec<Vec<u32>>,
    warnings: Vec<Warning>,
    begun: Instant,
    prefilled: Option<Instant>,
    done: bool,
}

impl<'a> TokenStream<'a> {
    /// Starts a job whose mode hands out tokens as they are made.
    pub(crate) fn start(job: Job<'a>) -> Result<Self> {
        let (model, copies) = (job.model, job.copies);
        let padded = job.padded.repeat(copies);
        let text = padded
            .rows()
            .iter()
            .enumerate()
            .map(|(row, prompt)| {
                RowText::new(model, prompt, beyond(&job.healed, row / copies), &job.trimmed)
            })
            .collect::<Result<_>>()?;
        let (begun, prompt_tokens) = (job.begun, job.prompt_tokens.clone());
        let warnings = job.resolved.warnings.clone();
        let hidden = job.hidden.clone().map(|recorder| Hidden {
            recorder,
            // With guidance, the rows that have their prompts come first.
            rows: padded.rows().len() * if job.guidance.is_some() { 2 } else { 1 },
            prompts: job.guidance.as_ref().map_or(&job.padded, |it| &it.rows).clone(),
        });
        Ok(Self {
            model,
            text,
            ready: VecDeque::new(),
            copies,
            hidden,
            prompt_tokens,
            healed_prompts: job.healed.iter().map(|it| it.ids.clone()).collect(),
            warnings,
            strategy: Strategy::start(job, &padded)?,
            begun,
            prefilled: None,
            done: false,
        })
    }

    /// What is odd about the configuration, as HF would warn; known before the first token.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// How many sequences the request makes.
    pub fn sequences(&self) -> usize {
        self.text.len()
    }

    /// New tokens at most, over all sequences; fewer where a sequence ends early.
    pub fn most_tokens(&self) -> usize {
        self.strategy.stopping().stop().max_new_tokens.saturating_mul(self.sequences())
    }

    /// Waits until the prompt has gone through the model; the first call of `next` does so by itself.
    ///
    /// # Errors
    /// When the model fails.
    pub fn prefill(&mut self) -> Result<()> {
        if self.prefilled.is_none() {
            self.strategy.wait()?;
            self.prefilled = Some(Instant::now());
        }
        Ok(())
    }

    /// Gathers the sequences. Those that have not ended count as cut off by length.
    ///
    /// # Errors
    /// When the tokens cannot be decoded.
    pub fn finish(self) -> Result<Generation> {
        self.gather().map(|(generation, _)| generation)
    }

    /// As [`finish`](Self::finish), and gives back the cache with all that the model was fed, to be
    /// gone on with in [`Request::cache`](crate::Request::cache).
    ///
    /// # Errors
    /// When the tokens cannot be decoded, or the request was one with guidance, DoLa or contrastive
    /// search, of which there is no cache to go on with.
    pub fn finish_with_cache(self) -> Result<(Generation, KvCache)> {
        let (generation, cache) = self.gather()?;
        match cache {
            Some(cache) => Ok((generation, cache)),
            None => {
                let what = "a request with guidance, DoLa or contrastive search leaves no cache that could be \
                            gone on with";
                Err(Error::new(ErrorKind::Request, what))
            }
        }
    }

    fn gather(self) -> Result<(Generation, Option<KvCache>)> {
        let end = Instant::now();
        let prefilled = self.prefilled.unwrap_or(end);
        let Outcome { rows, acceptance, cache } = self.strategy.finish();
        let sequences = rows
            .into_iter()
            .zip(self.text)
            .enumerate()
            .map(|(index, (row, shown))| {
                let prompt_index = index / self.copies;
                let states = |it: &Hidden| {
                    let prompts = &it.prompts;
                    let (padding, width) = (prompts.padding()[prompt_index], prompts.width());
                    it.recorder.states((index, it.rows), padding, width, row.tokens.len())
                };
                Ok(Sequence {
                    prompt_index,
                    hidden_states: self.hidden.as_ref().map(states).transpose()?,
                    text: shown.finish(self.model, &row.tokens)?,
                    tokens: row.tokens,
                    finish_reason: row.finish_reason.unwrap_or(FinishReason::Length),
                    score: None,
                    beam_indices: None,
                    beam_scores: None,
                    kept: row.kept,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let generation = Generation {
            sequences,
            prompt_tokens: self.prompt_tokens,
            prefill: prefilled - self.begun,
            decode: end - prefilled,
            warnings: self.warnings,
            acceptance,
            healed_prompts: self.healed_prompts,
        };
        Ok((generation, cache))
    }

    fn advance(&mut self) -> Option<Result<()>> {
        if let Err(e) = self.prefill() {
            return Some(Err(e));
        }
        let step = match self.strategy.next()? {
            Ok(step) => step,
            Err(e) => return Some(Err(e)),
        };
        for (at, &(sequence, token)) in step.iter().enumerate() {
            let is_last = !step[at + 1..].iter().any(|(other, _)| *other == sequence);
            let ends = is_last && self.strategy.has_ended(sequence);
            match self.text[sequence].push(token, ends) {
                Ok(text) => self.ready.push_back(Piece { sequence, token, text }),
                Err(e) => return Some(Err(e)),
            }
        }
        Some(Ok(()))
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            if self.done {
                return None;
            }
            match self.advance() {
                Some(Ok(())) => {}
                Some(Err(e)) => {
                    self.done = true;
                    return Some(Err(e));
                }
                None => self.done = true,
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

impl std::fmt::Debug for TokenStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenStream").field("strategy", &self.strategy).finish_non_exhaustive()
    }
}

/// Where the hidden states of a request are found.
struct Hidden {
    recorder: HiddenRecorder,
    /// Rows that the model runs.
    rows: usize,
    /// What it was fed first.
    prompts: LeftPadded,
}

/// The text of one row as it grows.
pub(crate) struct RowText<'a> {
    decoder: Option<StreamDecoder<'a>>,
    /// What the text begins with: the rest of a healed prompt.
    begin: String,
    /// Whether that was shown.
    begun: bool,
    /// Where the text is to end before a stop string.
    trim: Option<Trimmed>,
}

struct Trimmed {
    trim: StopTrim,
    shown: String,
}

impl<'a> RowText<'a> {
    pub(crate) fn new(
        model: &'a Model,
        prompt: &[u32],
        begin: &str,
        trimmed: &[String],
    ) -> Result<Self> {
        let (begin, begun) = (begin.to_owned(), false);
        let Ok(tokenizer) = model.tokenizer() else {
            return Ok(Self { decoder: None, begin, begun, trim: None });
        };
        let trim = match trimmed.iter().map(String::len).max() {
            None => None,
            Some(longest) => {
                // A string may begin in the prompt; each of its bytes may be a token.
                let end = &prompt[prompt.len().saturating_sub(longest)..];
                let trim = StopTrim::new(trimmed.to_vec(), &tokenizer.decode(end, true)?);
                Some(Trimmed { trim, shown: String::new() })
            }
        };
        Ok(Self { decoder: Some(tokenizer.stream(true)), begin, begun, trim })
    }

    /// What can be shown with the next token; with the last one, all that is left.
    pub(crate) fn push(&mut self, token: u32, ends: bool) -> Result<String> {
        let Some(decoder) = &mut self.decoder else { return Ok(String::new()) };
        let begin = if self.begun { "" } else { self.begin.as_str() };
        self.begun = true;
        let mut text = decoder.push(token)?.to_owned();
        if ends {
            text += decoder.flush()?;
        }
        let Some(Trimmed { trim, shown }) = &mut self.trim else {
            return Ok(begin.to_owned() + &text);
        };
        let mut text = trim.push(&text);
        if ends {
            text += &trim.finish();
        }
        shown.push_str(&text);
        Ok(begin.to_owned() + &text)
    }

    /// The text of all tokens at once.
    pub(crate) fn whole(mut self, tokens: &[u32]) -> Result<String> {
        let mut text = String::new();
        for (at, &token) in tokens.iter().enumerate() {
            text += &self.push(token, at + 1 == tokens.len())?;
        }
        Ok(text)
    }

    /// The whole text.
    fn finish(self, model: &Model, tokens: &[u32]) -> Result<String> {
        match (self.trim, self.decoder) {
            (Some(Trimmed { mut trim, mut shown }), Some(mut decoder)) => {
                shown += &trim.push(decoder.flush()?);
                shown += &trim.finish();
                Ok(self.begin + &shown)
            }
            _ => Ok(self.begin + &text(model, tokens)?),
        }
    }
}
