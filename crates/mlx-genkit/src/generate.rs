//! `generate()`: from a request to sequences, at once or piece by piece.

use std::time::{Duration, Instant};

use mlxgk_decoding_strategies::{
    Acceptance, DEFAULT_PREFILL_CHUNK, DecoderSession, FinishReason, Keep, Kept, LeftPadded, Rule,
    Stop, Stopping,
};
use mlxgk_generation_config::{GenerationMode, Resolved, Sources, Warning};
use mlxgk_kv_cache::{KvCache, RowId};
use mlxgk_logits_processors::{LogitsProcessor, ProcessorList, log_softmax};
use mlxgk_mlx_models::{NoHook, ResidualHook};

use crate::{
    Assistant, Error, ErrorKind, HiddenStates, Model, Prompt, Request, Result, Seed, TokenStream,
    beams,
    guidance::Guidance,
    healing::{Healed, heal},
    hidden::HiddenRecorder,
    stopping::{criteria, trims},
    text_processors::text_processors,
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
    /// What each token added to the sum in `score`: its processed log-probability. `None` outside beam
    /// search.
    pub beam_scores: Option<Vec<f32>>,
    /// What else was to be kept of each token: HF's `scores` and `logits`, and log-probabilities.
    pub kept: Kept,
    /// HF's `hidden_states`, where they were asked for (`output_hidden_states`).
    pub hidden_states: Option<HiddenStates>,
}

impl Sequence {
    /// The score that each token was chosen by, from the [kept](Self::kept) scores: HF's
    /// `compute_transition_scores`. With `normalize`, its log-probability among them. Of beams, whose
    /// scores are log-probabilities from the start, these are the [`beam_scores`](Self::beam_scores).
    ///
    /// `None` where scores were not kept (`output_scores`).
    ///
    /// # Errors
    /// When there is nothing to normalize, because all tokens were banned.
    pub fn transition_scores(&self, normalize: bool) -> Result<Option<Vec<f32>>> {
        if let Some(scores) = &self.beam_scores {
            return Ok((!normalize).then(|| scores.clone()));
        }
        if self.kept.scores.len() != self.tokens.len() {
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
        self.kept.scores.iter().zip(&self.tokens).map(score).collect::<Result<_>>().map(Some)
    }
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
    /// How well guesses did, where there was an assistant or prompt lookup.
    pub acceptance: Option<Acceptance>,
    /// What `token_healing` made of the prompts; empty where it was not asked for. Where a last token
    /// became a longer one, the text of the prompt's sequences begins with what that says more.
    pub healed_prompts: Vec<Vec<u32>>,
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
    pub(crate) hook: Box<dyn ResidualHook + 'a>,
    pub(crate) resolved: Resolved,
    pub(crate) prompt_tokens: Vec<usize>,
    pub(crate) padded: LeftPadded,
    pub(crate) pad: u32,
    /// Rows that run for each prompt: its sequences, or its beams.
    pub(crate) copies: usize,
    pub(crate) processors: ProcessorList,
    pub(crate) rule: Rule,
    pub(crate) stopping: Stopping,
    /// Strings that the text is to end before, where it is stopped at them.
    pub(crate) trimmed: Vec<String>,
    pub(crate) keep: Keep,
    pub(crate) hidden: Option<HiddenRecorder>,
    /// The prompts, where they were healed.
    pub(crate) healed: Vec<Healed>,
    /// Whether a hook looks on, for which rows must stay where they are.
    pub(crate) hooked: bool,
    pub(crate) assistant: Option<Assistant<'a>>,
    pub(crate) guidance: Option<Guidance>,
    pub(crate) cache: Option<KvCache>,
    pub(crate) begun: Instant,
}

impl<'a> Job<'a> {
    pub(crate) fn new<'hook: 'a>(model: &'a Model, request: Request<'hook>) -> Result<Self> {
        let begun = Instant::now();
        let Request { prompts, overrides, config, processors, seed, hook, .. } = request;
        let sources =
            Sources { kwargs: &overrides, passed: &config, model: model.generation_config() };
        let merged = sources.merge()?;
        let mut given = ids(&prompts, model)?;
        let mut healed = Vec::new();
        if merged.config.token_healing == Some(true) {
            healed = heal(model, &prompts)?;
            given = healed.iter().map(|it| it.ids.clone()).collect();
        }
        let prompts = given;
        let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let mut resolved = merged.resolve(width, Some(model.decoder().max_positions()))?;
        // A generation has room for all of these; HF's asks for another field to return them.
        let returned = ["output_scores", "output_logits", "output_hidden_states"];
        resolved.warnings.retain(|it| !returned.contains(&it.field()));
        resolved.mode = resolved.config.generation_mode(request.assistant.is_some());
        if resolved.mode == GenerationMode::ContrastiveSearch {
            // HF 5.23, which has this mode no more, says that only sampling reads it.
            resolved.warnings.retain(|it| it.field() != "top_k");
        }
        let (copies, field) = if resolved.mode.streams() {
            (resolved.num_return_sequences, "num_return_sequences")
        } else {
            (resolved.num_beams, "num_beams")
        };
        let rows = rows(prompts.len(), copies, field)?;
        let pad = padding_token(&resolved, rows, model)?;
        let padded = LeftPadded::new(&prompts, pad)?;
        let (processors, rule) = rule(&resolved, model, processors, seed)?;
        let stop = Stop {
            max_new_tokens: resolved.lengths.max_length - width,
            eos: resolved.special_tokens.eos.clone(),
        };
        let criteria = criteria(&resolved, model, request.criteria, begun)?;
        let guidance = Guidance::new(&resolved, model, &request.negative_prompts, &padded)?;
        let hidden = HiddenRecorder::new(request.hidden_states, &resolved, model.decoder())?;
        let hooked = hook.is_some() || hidden.is_some();
        let hook: Box<dyn ResidualHook + 'a> = match hook {
            Some(hook) => Box::new(hook),
            None => Box::new(NoHook),
        };
        let job = Self {
            model,
            hook: match &hidden {
                Some(hidden) => hidden.behind(hook),
                None => hook,
            },
            hidden,
            healed,
            prompt_tokens: prompts.iter().map(Vec::len).collect(),
            padded,
            pad,
            copies,
            processors,
            rule,
            stopping: Stopping::new(stop, criteria),
            trimmed: if request.trim_stop { trims(&resolved) } else { Vec::new() },
            keep: Keep {
                scores: resolved.config.output_scores == Some(true),
                logits: resolved.config.output_logits == Some(true),
                logprobs: request.logprobs,
            },
            hooked,
            assistant: request.assistant,
            guidance,
            cache: request.cache,
            begun,
            resolved,
        };
        job.check()?;
        Ok(job)
    }

    /// What one part of the request refuses of another.
    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::Request, what));
        let mode = self.resolved.mode;
        if mode == GenerationMode::AssistedGeneration {
            if self.resolved.num_return_sequences > 1 {
                return refuse(
                    "`num_return_sequences` has to be 1 with an assistant or prompt lookup",
                );
            }
            if self.padded.rows().len() > 1 {
                return refuse("an assistant or prompt lookup serves one prompt at a time");
            }
        } else if self.assistant.is_some()
            || self.resolved.config.prompt_lookup_num_tokens.is_some()
        {
            return refuse("an assistant or prompt lookup helps greedy decoding and sampling only");
        }
        let plain = matches!(mode, GenerationMode::GreedySearch | GenerationMode::Sample);
        if self.guidance.is_some() && !plain {
            return refuse(
                "`guidance_scale` goes with greedy decoding and sampling only, without \
                           beams, an assistant, prompt lookup, contrastive search or DoLa",
            );
        }
        if self.resolved.config.dola_layers.is_some() && mode != GenerationMode::DolaGeneration {
            return refuse(
                "`dola_layers` goes with greedy decoding and sampling only, without beams, an \
                           assistant, prompt lookup or contrastive search",
            );
        }
        let contrasts =
            matches!(mode, GenerationMode::ContrastiveSearch | GenerationMode::DolaGeneration);
        if contrasts && self.hidden.is_some() {
            return refuse("hidden states are not kept of contrastive search and DoLa");
        }
        if !uses_cache(&self.resolved) {
            if contrasts {
                return refuse(
                    "`use_cache` is false, but contrastive search and DoLa need the cache",
                );
            }
            if mode == GenerationMode::AssistedGeneration {
                return refuse(
                    "`use_cache` is false, but an assistant or prompt lookup takes back what the \
                     model was fed, for which it needs the cache",
                );
            }
            if self.cache.is_some() {
                return refuse(
                    "`use_cache` is false, but a cache is to be gone on with: set it to true",
                );
            }
        }
        let resumes = plain || mode == GenerationMode::AssistedGeneration;
        let alone = self.padded.rows().len() * self.copies == 1;
        if self.cache.is_some() && !(resumes && self.guidance.is_none() && alone) {
            return refuse(
                "a cache can be gone on with for one prompt and one sequence, without \
                           beams, guidance, contrastive search or DoLa",
            );
        }
        if let Some(cache) = &self.cache {
            let named = |e: mlxgk_kv_cache::Error| Error::new(ErrorKind::Request, e.to_string());
            let names: Vec<_> = cache.row_ids().iter().map(|&row| self.hook.name(row)).collect();
            cache.check_steering(&names).map_err(named)?;
        }
        if self.guidance.is_some() && self.hook.budget(RowId::default()).is_some() {
            return refuse(
                "a KL budget does not go with `guidance_scale`: it bounds the scores of each pass, \
                 not what guidance makes of two",
            );
        }
        if !mode.streams() {
            let moved = !matches!(mode, GenerationMode::BeamSearch | GenerationMode::BeamSample);
            if moved && self.stopping.has_criteria() {
                return refuse(
                    "groups of beams and forced words end at end tokens and the length only: \
                               leave out stop strings, `max_time` and criteria",
                );
            }
            if self.keep != Keep::default() || self.hidden.is_some() {
                return refuse(
                    "scores, logits, log-probabilities and hidden states are not kept of beams",
                );
            }
        }
        Ok(())
    }

    /// Starts a strategy that hands out its tokens as they are made.
    fn stream(self) -> Result<TokenStream<'a>> {
        TokenStream::start(self)
    }
}

/// Feeds the prompts, and repeats each for its copies.
pub(crate) fn prefill<'a>(
    model: &'a Model,
    resolved: &Resolved,
    padded: &LeftPadded,
    copies: usize,
    hook: impl ResidualHook + 'a,
) -> Result<DecoderSession<'a>> {
    let mut session = DecoderSession::prefill(model.decoder(), padded, chunk(resolved), hook)?;
    session.repeat(copies)?;
    Ok(if uses_cache(resolved) { session } else { session.without_cache() })
}

/// Feeds what of a prompt the cache does not hold.
pub(crate) fn resume<'a>(
    model: &'a Model,
    resolved: &Resolved,
    cache: KvCache,
    prompt: &[u32],
    hook: impl ResidualHook + 'a,
) -> Result<DecoderSession<'a>> {
    Ok(DecoderSession::resume(model.decoder(), cache, prompt, chunk(resolved), hook)?)
}

/// Whether keys and values are kept from token to token.
pub(crate) fn uses_cache(resolved: &Resolved) -> bool {
    resolved.config.use_cache != Some(false)
}

/// How many tokens of a prompt go through the model at a time.
pub(crate) fn chunk(resolved: &Resolved) -> usize {
    resolved.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK)
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
    Ok((processors, Rule::sample(parts.warpers, parts.after, seed)))
}

/// The text of new tokens; empty where the model has no tokenizer.
pub(crate) fn text(model: &Model, tokens: &[u32]) -> Result<String> {
    match model.tokenizer() {
        Ok(tokenizer) => Ok(tokenizer.decode(tokens, true)?),
        Err(_) => Ok(String::new()),
    }
}
