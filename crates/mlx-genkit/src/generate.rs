//! `generate()`: from a request to sequences, at once or piece by piece.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use mlxgk_decoding_strategies::{
    DEFAULT_PREFILL_CHUNK, DecoderSession, Decoding, FinishReason, LeftPadded, Rule, Sampling, Stop,
};
use mlxgk_generation_config::{Resolved, Sources, Warning};
use mlxgk_logits_processors::{LogitsProcessor, ProcessorList};
use mlxgk_mlx_models::{NoHook, ResidualHook};
use mlxgk_samplers::Streams;
use mlxgk_tokenizer_bridge::StreamDecoder;

use crate::{
    Error, ErrorKind, Model, Prompt, Request, Result, Seed, beams, text_processors::text_processors,
};

/// Far more than any machine runs at once; beyond it lies nothing but a typing error and its
/// allocations.
const MAX_ROWS: usize = 65_536;

/// One finished sequence.
#[derive(Debug, Clone, PartialEq)]
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
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Ordered by prompt, then best first; where there are no beams, by draw.
    pub sequences: Vec<Sequence>,
    /// Tokens of each prompt, padding left out.
    pub prompt_tokens: Vec<usize>,
    /// From the request to the scores of the first new token.
    pub prefill: Duration,
    /// From there to the end.
    pub decode: Duration,
    /// What is odd about the configuration, as HF would warn.
    pub warnings: Vec<Warning>,
}

impl Generation {
    /// New tokens over all sequences.
    pub fn generated_tokens(&self) -> usize {
        self.sequences.iter().map(|it| it.tokens.len()).sum()
    }
}

/// Continues the request's prompts to their end.
///
/// # Errors
/// When a prompt or a field of the configuration is wrong, or the model fails.
pub fn generate(model: &Model, request: Request<'_>) -> Result<Generation> {
    let job = Job::new(model, request)?;
    if !job.resolved.mode.streams() {
        return beams::generate(job);
    }
    let mut stream = job.stream()?;
    for piece in stream.by_ref() {
        piece?;
    }
    stream.finish()
}

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

/// Starts the request and returns an iterator over its tokens. While the caller handles one, the
/// model is at work on the next.
///
/// # Errors
/// As [`generate`], and when the request asks for beams, which are ranked at the end only.
pub fn stream<'a, 'hook: 'a>(model: &'a Model, request: Request<'hook>) -> Result<TokenStream<'a>> {
    let job = Job::new(model, request)?;
    if !job.resolved.mode.streams() {
        let what = "beams cannot be streamed, because they are ranked at the end only: set \
                    `num_beams` to 1, or wait for the whole with `generate`";
        return Err(Error::new(ErrorKind::Request, what));
    }
    job.stream()
}

/// A request of which everything is settled but the tokens: what is wrong with it is known, and the
/// device has not begun.
pub(crate) struct Job<'a> {
    pub(crate) model: &'a Model,
    pub(crate) hook: &'a mut dyn ResidualHook,
    pub(crate) resolved: Resolved,
    pub(crate) prompt_tokens: Vec<usize>,
    pub(crate) padded: LeftPadded,
    pub(crate) pad: u32,
    /// Rows that run for each prompt: its sequences, or its beams.
    pub(crate) copies: usize,
    pub(crate) processors: ProcessorList,
    pub(crate) rule: Rule,
    pub(crate) stop: Stop,
    pub(crate) begun: Instant,
}

impl<'a> Job<'a> {
    fn new<'hook: 'a>(model: &'a Model, request: Request<'hook>) -> Result<Self> {
        let begun = Instant::now();
        let Request { prompts, overrides, config, processors, seed, hook } = request;
        let hook: &'a mut dyn ResidualHook = match hook {
            Some(hook) => hook,
            // A box of nothing: leaking it leaks no memory.
            None => Box::leak(Box::new(NoHook)),
        };
        let prompts = ids(&prompts, model)?;
        let sources =
            Sources { kwargs: &overrides, passed: &config, model: model.generation_config() };
        let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let resolved = sources.merge()?.resolve(width, Some(model.decoder().max_positions()))?;
        let (copies, field) = if resolved.mode.streams() {
            (resolved.num_return_sequences, "num_return_sequences")
        } else {
            (resolved.num_beams, "num_beams")
        };
        let rows = rows(prompts.len(), copies, field)?;
        let pad = padding_token(&resolved, rows, model)?;
        let padded = LeftPadded::new(&prompts, pad)?;
        let (processors, rule) = rule(&resolved, rows, model, processors, seed)?;
        let stop = Stop {
            max_new_tokens: resolved.lengths.max_length - width,
            eos: resolved.special_tokens.eos.clone(),
        };
        let prompt_tokens = prompts.iter().map(Vec::len).collect();
        Ok(Self {
            model,
            hook,
            resolved,
            prompt_tokens,
            padded,
            pad,
            copies,
            processors,
            rule,
            stop,
            begun,
        })
    }

    /// Starts a strategy that hands out its tokens as they are made.
    fn stream(self) -> Result<TokenStream<'a>> {
        let Self { model, resolved, padded, copies, .. } = self;
        let session = prefill(model, &resolved, &padded, copies, self.hook)?;
        let padded = padded.repeat(copies);
        let decoding = Decoding::new(
            session,
            padded.rows(),
            padded.padding(),
            self.processors,
            self.rule,
            self.stop,
            self.pad,
        );
        let text = (0..padded.rows().len())
            .map(|_| model.tokenizer().ok().map(|it| it.stream(true)))
            .collect();
        Ok(TokenStream {
            model,
            decoding,
            text,
            ready: VecDeque::new(),
            copies,
            prompt_tokens: self.prompt_tokens,
            warnings: resolved.warnings,
            begun: self.begun,
            prefilled: None,
            done: false,
        })
    }
}

/// Feeds the prompts, and repeats each for its copies.
pub(crate) fn prefill<'a>(
    model: &'a Model,
    resolved: &Resolved,
    padded: &LeftPadded,
    copies: usize,
    hook: &'a mut dyn ResidualHook,
) -> Result<DecoderSession<'a>> {
    let chunk = resolved.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK);
    let mut session = DecoderSession::prefill(model.decoder(), padded, chunk, hook)?;
    session.repeat(copies)?;
    Ok(session)
}

/// The prompts' token ids; where there are several, an error says which is wrong.
fn ids(prompts: &[Prompt], model: &Model) -> Result<Vec<Vec<u32>>> {
    let several = prompts.len() > 1;
    let ids = |(index, prompt): (usize, &Prompt)| {
        prompt.ids(model).map_err(|e| if several { e.of_prompt(index) } else { e })
    };
    prompts.iter().enumerate().map(ids).collect()
}

/// How many sequences run at once.
fn rows(prompts: usize, copies: usize, field: &str) -> Result<usize> {
    match prompts.checked_mul(copies) {
        Some(rows) if rows <= MAX_ROWS => Ok(rows),
        _ => {
            let what = format!(
                "the request makes {prompts} × {copies} sequences (prompts × `{field}`); at most \
                 {MAX_ROWS} run at once"
            );
            Err(Error::new(ErrorKind::Request, what))
        }
    }
}

/// What fills up shorter prompts and rows that have ended. A single row needs none.
fn padding_token(resolved: &Resolved, rows: usize, model: &Model) -> Result<u32> {
    let vocab = model.decoder().vocab_size();
    match resolved.special_tokens.pad {
        Some(pad) if rows > 1 && pad as usize >= vocab => {
            let what = format!(
                "the padding token {pad} (`pad_token_id`, else the first `eos_token_id`) is outside \
                 the vocabulary of {vocab}"
            );
            Err(Error::new(ErrorKind::Request, what))
        }
        pad => Ok(pad.unwrap_or(0)),
    }
}

/// The processors before the choice, and the choice.
fn rule(
    resolved: &Resolved,
    rows: usize,
    model: &Model,
    user: Vec<Box<dyn LogitsProcessor>>,
    seed: Seed,
) -> Result<(ProcessorList, Rule)> {
    let mut parts = resolved.pipeline(model.decoder().vocab_size())?;
    for processor in text_processors(resolved, model)? {
        parts.processors.insert(processor);
    }
    let processors = parts.processors.with_user_processors(user);
    if !resolved.do_sample {
        return Ok((processors, Rule::Greedy));
    }
    let streams = match seed {
        Seed::Torch(seed) => Streams::torch(seed),
        Seed::Fast(seed) => Streams::fast(seed, rows),
    };
    let sampling = Sampling::new(&parts.warpers, parts.after, streams, rows);
    Ok((processors, Rule::Sample(Box::new(sampling))))
}

/// The text of new tokens; empty where the model has no tokenizer.
pub(crate) fn text(model: &Model, tokens: &[u32]) -> Result<String> {
    match model.tokenizer() {
        Ok(tokenizer) => Ok(tokenizer.decode(tokens, true)?),
        Err(_) => Ok(String::new()),
    }
}

/// A request being served: an iterator over its tokens.
pub struct TokenStream<'a> {
    model: &'a Model,
    decoding: Decoding<DecoderSession<'a>>,
    text: Vec<Option<StreamDecoder<'a>>>,
    ready: VecDeque<Piece>,
    copies: usize,
    prompt_tokens: Vec<usize>,
    warnings: Vec<Warning>,
    begun: Instant,
    prefilled: Option<Instant>,
    done: bool,
}

impl TokenStream<'_> {
    /// What is odd about the configuration, as HF would warn; known before the first token.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// How many sequences the request makes.
    pub fn sequences(&self) -> usize {
        self.decoding.rows().len()
    }

    /// New tokens at most, over all sequences; fewer where a sequence ends early.
    pub fn most_tokens(&self) -> usize {
        self.decoding.stop().max_new_tokens.saturating_mul(self.sequences())
    }

    /// Waits until the prompt has gone through the model; the first call of `next` does so by itself.
    ///
    /// # Errors
    /// When the model fails.
    pub fn prefill(&mut self) -> Result<()> {
        if self.prefilled.is_none() {
            self.decoding.wait()?;
            self.prefilled = Some(Instant::now());
        }
        Ok(())
    }

    /// The text of `sequence` that its last token left uncertain, such as half a character.
    fn flush(&mut self, sequence: usize) -> Result<String> {
        match &mut self.text[sequence] {
            Some(decoder) => Ok(decoder.flush()?.to_owned()),
            None => Ok(String::new()),
        }
    }

    /// Gathers the sequences. Those that have not ended count as cut off by length.
    ///
    /// # Errors
    /// When the tokens cannot be decoded.
    pub fn finish(self) -> Result<Generation> {
        let end = Instant::now();
        let prefilled = self.prefilled.unwrap_or(end);
        let (_, rows) = self.decoding.into_parts();
        let sequences = rows
            .into_iter()
            .enumerate()
            .map(|(index, row)| {
                let text = text(self.model, &row.tokens)?;
                Ok(Sequence {
                    prompt_index: index / self.copies,
                    tokens: row.tokens,
                    text,
                    finish_reason: row.finish_reason.unwrap_or(FinishReason::Length),
                    score: None,
                    beam_indices: None,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Generation {
            sequences,
            prompt_tokens: self.prompt_tokens,
            prefill: prefilled - self.begun,
            decode: end - prefilled,
            warnings: self.warnings,
        })
    }

    fn advance(&mut self) -> Option<Result<()>> {
        if let Err(e) = self.prefill() {
            return Some(Err(e));
        }
        let step = match self.decoding.next()? {
            Ok(step) => step,
            Err(e) => return Some(Err(e.into())),
        };
        for (sequence, token) in step.into_iter().enumerate() {
            let Some(token) = token else { continue };
            match self.piece(sequence, token) {
                Ok(piece) => self.ready.push_back(piece),
                Err(e) => return Some(Err(e)),
            }
        }
        Some(Ok(()))
    }

    fn piece(&mut self, sequence: usize, token: u32) -> Result<Piece> {
        let mut text = match &mut self.text[sequence] {
            Some(decoder) => decoder.push(token)?.to_owned(),
            None => String::new(),
        };
        if self.decoding.rows()[sequence].finish_reason.is_some() {
            text += &self.flush(sequence)?;
        }
        Ok(Piece { sequence, token, text })
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
        f.debug_struct("TokenStream").field("decoding", &self.decoding).finish_non_exhaustive()
    }
}
