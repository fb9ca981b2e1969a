//! One text with its cache: read piece by piece, forked, continued.

use std::{ops::Range, time::Duration};

use mlx_genkit::{FinishReason, GenerationConfig, Model, Request, Result, Seed, kv_cache::KvCache};

use crate::{
    TurnFormat,
    example::refused,
    transcript::{Source, Transcript},
};

/// What the model said.
///
/// See the example of [`Report`](crate::Report).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Said {
    /// Its text without special tokens, without blanks around it.
    pub text: String,
    /// Its tokens, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens that stood before it.
    pub context: usize,
    /// Those of them that a cache held.
    pub cached: usize,
    /// Seconds until the first of its tokens could be chosen, beyond those in which the cache was filled.
    pub prefill: f64,
    /// Seconds from there to its end.
    pub decode: f64,
}

/// A cache as it stands.
///
/// See the example of [`Report`](crate::Report).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheSize {
    /// What it is of: a cluster, a turn, or all.
    pub name: String,
    /// Tokens held.
    pub tokens: usize,
    /// Bytes of what the next token can see.
    pub live_bytes: usize,
    /// Bytes reserved.
    pub allocated_bytes: usize,
    /// How many tokens the narrowest layer sees; `None` where all see everything.
    pub window: Option<usize>,
    /// The turns in it, by their numbers, and the tokens they take up.
    pub turns: Vec<(u64, Range<usize>)>,
}

/// A text that grows, and what the model remembers of it.
#[derive(Debug, Clone)]
pub(crate) struct Thread<'a> {
    model: &'a Model,
    config: &'a GenerationConfig,
    pub(crate) transcript: Transcript<'a>,
    /// `None` before the first token, and where none is kept.
    pub(crate) cache: Option<KvCache>,
    keeps_cache: bool,
    /// Tokens read, and for how long, by this text and those it was forked from.
    pub(crate) read: usize,
    pub(crate) reading: Duration,
}

impl<'a> Thread<'a> {
    pub(crate) fn new(
        model: &'a Model,
        config: &'a GenerationConfig,
        format: TurnFormat,
        keeps_cache: bool,
    ) -> Self {
        let transcript = Transcript::new(model, format);
        let (read, reading) = (0, Duration::ZERO);
        Self { model, config, transcript, cache: None, keeps_cache, read, reading }
    }

    pub(crate) fn config(&self) -> &'a GenerationConfig {
        self.config
    }

    /// The same text, to be continued in another way. What was read counts for the original alone.
    pub(crate) fn fork(&self) -> Self {
        let cache = self.cache.as_ref().map(KvCache::fork);
        Self { cache, read: 0, reading: Duration::ZERO, ..self.clone() }
    }

    /// Adds a paragraph, and reads it.
    pub(crate) fn say(&mut self, source: Source, role: &str, mark: &str, text: &str) -> Result<()> {
        self.transcript.write(source, role, mark, text)?;
        if self.keeps_cache {
            self.catch_up()?;
        }
        Ok(())
    }

    /// Reads what the cache does not hold.
    fn catch_up(&mut self) -> Result<()> {
        let tokens = &self.transcript.tokens;
        self.check_room(0)?;
        let held = self.cache.as_ref().map_or(0, KvCache::len);
        let begun = std::time::Instant::now();
        let request = Request::new(tokens.as_slice()).config(self.config.clone());
        let request = match self.cache.take() {
            Some(cache) => request.cache(cache),
            None => request,
        };
        self.cache = Some(self.model.read(request)?);
        self.reading += begun.elapsed();
        self.read += tokens.len() - held.min(tokens.len());
        Ok(())
    }

    /// Lets the model answer a turn, and keeps its answer.
    pub(crate) fn answer(&mut self, turn: usize, seed: u64) -> Result<Said> {
        self.transcript.begin_answer()?;
        let request = self.request(seed)?;
        let (said, cache) = if self.keeps_cache {
            let mut stream = self.model.stream(request)?;
            stream.by_ref().try_for_each(|it| it.map(drop))?;
            let (generation, cache) = stream.finish_with_cache()?;
            (self.said(generation)?, Some(cache))
        } else {
            (self.said(self.model.generate(request)?)?, None)
        };
        self.cache = cache;
        let ends = usize::from(said.finish_reason == FinishReason::Eos);
        self.transcript.answered(turn, &said.tokens[..said.tokens.len() - ends]);
        Ok(said)
    }

    /// Lets the model write an output, which is not kept in this text.
    pub(crate) fn output(&mut self, seed: u64) -> Result<Said> {
        let request = self.request(seed)?;
        let generation = self.model.generate(request)?;
        self.said(generation)
    }

    /// Asks for what follows the text. The cache is forked.
    fn request(&self, seed: u64) -> Result<Request<'a>> {
        self.check_room(self.config.max_new_tokens.unwrap_or(0))?;
        let request = Request::new(self.transcript.tokens.as_slice());
        let request = request.config(self.config.clone()).seed(Seed::Fast(seed));
        Ok(match &self.cache {
            Some(cache) => request.cache(cache.fork()),
            None => request,
        })
    }

    fn said(&mut self, generation: mlx_genkit::Generation) -> Result<Said> {
        let (context, cached) = (self.transcript.tokens.len(), generation.cached_tokens);
        self.read += context - cached;
        let (prefill, decode) = (generation.prefill.as_secs_f64(), generation.decode.as_secs_f64());
        let sequence = generation.sequences.into_iter().next();
        let sequence = sequence.ok_or_else(|| refused("the model wrote nothing"))?;
        Ok(Said {
            text: sequence.text.trim().to_owned(),
            tokens: sequence.tokens,
            finish_reason: sequence.finish_reason,
            context,
            cached,
            prefill,
            decode,
        })
    }

    /// Refuses a text that the model's context does not hold: what follows would mean nothing.
    fn check_room(&self, new: usize) -> Result<()> {
        let (held, context) = (self.transcript.tokens.len(), self.model.decoder().max_positions());
        if held.saturating_add(new) <= context {
            return Ok(());
        }
        let what =
            format!("{held} tokens, and {new} new ones at most, are more than the {context}");
        Err(refused(format!("{what} that {} was made for", self.model.name())))
    }

    /// The cache's size, under a name; `None` where none is kept.
    pub(crate) fn size(&self, name: &str, turn_ids: &[u64]) -> Option<CacheSize> {
        let cache = self.cache.as_ref()?;
        let turns = self.transcript.segments.iter().filter_map(|(source, range)| match source {
            Source::Turn(at) => Some((turn_ids[*at], range.clone())),
            _ => None,
        });
        Some(CacheSize {
            name: name.to_owned(),
            tokens: cache.len(),
            live_bytes: cache.live_bytes(),
            allocated_bytes: cache.allocated_bytes(),
            window: cache.windows().flatten().min(),
            turns: turns.collect(),
        })
    }
}
