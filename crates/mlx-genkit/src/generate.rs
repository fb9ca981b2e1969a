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
    Error, ErrorKind, Model, Prompt, Request, Result, Seed, text_processors::text_processors,
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
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Ordered by prompt, then by draw.
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
    let mut stream = stream(model, request)?;
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
/// As [`generate`].
pub fn stream<'a, 'hook: 'a>(model: &'a Model, request: Request<'hook>) -> Result<TokenStream<'a>> {
    let begun = Instant::now();
    let Request { prompts, overrides, config, processors, seed, hook } = request;
    let hook: &'a mut dyn ResidualHook = match hook {
        Some(hook) => hook,
        // A box of nothing: leaking it leaks no memory.
        None => Box::leak(Box::new(NoHook)),
    };
    let prompts = ids(&prompts, model)?;
    let sources = Sources { kwargs: &overrides, passed: &config, model: model.generation_config() };
    let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let resolved = sources.merge()?.resolve(width, Some(model.decoder().max_positions()))?;
    let copies = resolved.num_return_sequences;
    let rows = rows(prompts.len(), copies)?;
    let pad = padding_token(&resolved, rows, model)?;
    let padded = LeftPadded::new(&prompts, pad)?;
    let (processors, rule) = rule(&resolved, rows, model, processors, seed)?;

    // Whatever is wrong with the request is known by now; from here on the device works.
    let chunk = resolved.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK);
    let mut session = DecoderSession::prefill(model.decoder(), &padded, chunk, hook)?;
    session.repeat(copies)?;
    let padded = padded.repeat(copies);
    let stop = Stop {
        max_new_tokens: resolved.lengths.max_length - width,
        eos: resolved.special_tokens.eos.clone(),
    };
    let decoding =
        Decoding::new(session, padded.rows(), padded.padding(), processors, rule, stop, pad);
    let text = (0..padded.rows().len())
        .map(|_| model.tokenizer().ok().map(|it| it.stream(true)))
        .collect();
    Ok(TokenStream {
        model,
        decoding,
        text,
        ready: VecDeque::new(),
        copies,
        prompt_tokens: prompts.iter().map(Vec::len).collect(),
        warnings: resolved.warnings,
        begun,
        prefilled: None,
        done: false,
    })
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
fn rows(prompts: usize, copies: usize) -> Result<usize> {
    match prompts.checked_mul(copies) {
        Some(rows) if rows <= MAX_ROWS => Ok(rows),
        _ => {
            let what = format!(
                "the request makes {prompts} × {copies} sequences (prompts × \
                 `num_return_sequences`); at most {MAX_ROWS} run at once"
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
                let text = match self.model.tokenizer() {
                    Ok(tokenizer) => tokenizer.decode(&row.tokens, true)?,
                    Err(_) => String::new(),
                };
                Ok(Sequence {
                    prompt_index: index / self.copies,
                    tokens: row.tokens,
                    text,
                    finish_reason: row.finish_reason.unwrap_or(FinishReason::Length),
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
