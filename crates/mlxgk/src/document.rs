//! The JSON documents of `--format json`: their fields, in the order they are printed.
//!
//! The README documents the fields that programs rely on; further ones follow them.

use std::time::Duration;

use mlx_genkit::{
    Acceptance, AttentionWeights, Attentions, Generation, HiddenStates, Model, Piece, Scored,
    Sequence, decoding_strategies::TokenLogprobs,
};
use serde::Serialize;
use serde_json::Value;

use crate::{failure::Result, terminal};

/// Prints a document as one line.
pub(crate) fn print(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(document).map_err(|e| {
        crate::failure::Failure::other(format_args!("cannot write the document as JSON: {e}"))
    })?;
    Ok(terminal::line(text)?)
}

/// What `generate` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Generated<'a> {
    sequences: Vec<Continuation<'a>>,
    prompt_tokens: &'a [usize],
    generated_tokens: usize,
    seconds: Seconds,
    tokens_per_second: f64,
    mode: &'static str,
    /// Null where nothing is drawn.
    seed: Option<u64>,
    warnings: &'a [String],
    /// The merged generation config.
    settings: &'a Value,
    versions: Versions,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    healed_prompts: &'a [Vec<u32>],
    /// Tokens of the prompt that the prompt cache held.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assistant: Option<Helper>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompts: Option<&'a [Option<String>]>,
}

/// What is known of a request besides what it generated.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) loaded: Duration,
    pub(crate) mode: &'static str,
    pub(crate) seed: Option<u64>,
    pub(crate) warnings: Vec<String>,
    /// Whether a prompt cache was given.
    pub(crate) is_cached: bool,
    /// The texts of the prompts, where they are to be shown.
    pub(crate) prompts: Option<Vec<Option<String>>>,
    /// The merged generation config.
    pub(crate) settings: Value,
}

/// The release that made a document, and that of transformers whose behaviour it follows.
#[derive(Debug, Serialize)]
pub(crate) struct Versions {
    mlxgk: &'static str,
    transformers: &'static str,
}

impl Versions {
    pub(crate) const OURS: Self = Self { mlxgk: env!("CARGO_PKG_VERSION"), transformers: "5.23" };
}

/// A token as it is made, one per line of `--format jsonl`.
#[derive(Debug, Serialize)]
pub(crate) struct PieceLine<'a> {
    sequence: usize,
    token: u32,
    text: &'a str,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprob>,
}

impl<'a> PieceLine<'a> {
    pub(crate) fn new(it: &'a Piece) -> Self {
        Self {
            sequence: it.sequence,
            token: it.token,
            text: &it.text,
            finish_reason: it.finish_reason.map(|it| it.as_str()),
            logprobs: it.logprobs.as_ref().map(Logprob::new),
        }
    }
}

#[derive(Debug, Serialize)]
struct Continuation<'a> {
    prompt_index: usize,
    tokens: &'a [u32],
    text: &'a str,
    finish_reason: &'static str,
    score: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Logprob>,
    /// Null is the score of a token that was banned and chosen all the same: JSON has no infinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    transition_scores: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beam_indices: Option<&'a [usize]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_states: Option<Hidden<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attentions: Option<Looked<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guardrails: Option<Guarded>,
}

/// What the guardrails say of a text.
#[derive(Debug, Serialize)]
struct Guarded {
    suspicions: Vec<String>,
    /// Why the first draw was rejected; null where it was accepted.
    resampled: Option<String>,
}

#[derive(Debug, Serialize)]
struct Logprob {
    token: u32,
    logprob: f64,
    top: Vec<(u32, f64)>,
}

/// By token, layer and position: the layers' numbers beside them.
#[derive(Debug, Serialize)]
struct Hidden<'a> {
    layers: &'a [usize],
    steps: Vec<Vec<Vec<&'a [f32]>>>,
}

/// By token, layer, head, position and column: the layers' numbers beside them.
#[derive(Debug, Serialize)]
struct Looked<'a> {
    layers: &'a [usize],
    steps: Vec<Vec<Vec<Vec<&'a [f32]>>>>,
}

#[derive(Debug, Serialize)]
struct Seconds {
    load: f64,
    prefill: f64,
    decode: f64,
}

#[derive(Debug, Serialize)]
struct Helper {
    guessed: usize,
    accepted: usize,
    forced: usize,
    turns: usize,
}

impl<'a> Generated<'a> {
    pub(crate) fn new(generation: &'a Generation, about: &'a About) -> Self {
        Self {
            sequences: generation.sequences.iter().map(Continuation::new).collect(),
            prompt_tokens: &generation.prompt_tokens,
            generated_tokens: generation.generated_tokens(),
            seconds: Seconds {
                load: about.loaded.as_secs_f64(),
                prefill: generation.prefill.as_secs_f64(),
                decode: generation.decode.as_secs_f64(),
            },
            tokens_per_second: tokens_per_second(generation),
            mode: about.mode,
            seed: about.seed,
            warnings: &about.warnings,
            settings: &about.settings,
            versions: Versions::OURS,
            healed_prompts: &generation.healed_prompts,
            cached_tokens: about.is_cached.then_some(generation.cached_tokens),
            assistant: generation.acceptance.map(Helper::new),
            prompts: about.prompts.as_deref(),
        }
    }
}

impl<'a> Continuation<'a> {
    fn new(it: &'a Sequence) -> Self {
        Self {
            prompt_index: it.prompt_index,
            tokens: &it.tokens,
            text: &it.text,
            finish_reason: it.finish_reason.as_str(),
            score: it.score.map(Into::into),
            logprobs: it.recorded.logprobs.iter().map(Logprob::new).collect(),
            transition_scores: it.transition_scores(false).ok().flatten().map(|it| widened(&it)),
            beam_indices: it.beam_indices.as_deref(),
            hidden_states: it.hidden_states.as_ref().map(Hidden::new),
            attentions: it.attentions.as_ref().map(Looked::new),
            guardrails: it.verdict.as_ref().map(|it| Guarded {
                suspicions: it.suspicions.iter().map(ToString::to_string).collect(),
                resampled: it.resampled.as_ref().map(ToString::to_string),
            }),
        }
    }
}

impl Logprob {
    fn new(it: &TokenLogprobs) -> Self {
        Self { token: it.token, logprob: it.logprob.into(), top: top(&it.top) }
    }
}

fn top(likeliest: &[(u32, f32)]) -> Vec<(u32, f64)> {
    likeliest.iter().map(|&(token, logprob)| (token, logprob.into())).collect()
}

/// Numbers with all of their digits, so that what is computed from the document agrees with what was
/// computed from them.
fn widened(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().copied().map(Into::into).collect()
}

impl<'a> Hidden<'a> {
    fn new(hidden: &'a HiddenStates) -> Self {
        let positions = |layer: &'a Vec<f32>| layer.chunks(hidden.hidden_size).collect();
        let layers = |step: &'a Vec<Vec<f32>>| step.iter().map(positions).collect();
        Self { layers: &hidden.layers, steps: hidden.steps.iter().map(layers).collect() }
    }
}

impl<'a> Looked<'a> {
    fn new(attentions: &'a Attentions) -> Self {
        let head = |weights: &'a AttentionWeights, head: usize| {
            (0..weights.positions).filter_map(|it| weights.row(head, it)).collect()
        };
        let layer = |weights: &'a AttentionWeights| {
            (0..weights.heads).map(|it| head(weights, it)).collect()
        };
        let layers = |step: &'a Vec<AttentionWeights>| step.iter().map(layer).collect();
        Self { layers: &attentions.layers, steps: attentions.steps.iter().map(layers).collect() }
    }
}

impl Helper {
    fn new(it: Acceptance) -> Self {
        Self { guessed: it.guessed, accepted: it.accepted, forced: it.forced, turns: it.turns }
    }
}

/// New tokens of all sequences per second of decoding; 0 where decoding took no time.
pub(crate) fn tokens_per_second(generation: &Generation) -> f64 {
    let seconds = generation.decode.as_secs_f64();
    if seconds > 0.0 { generation.generated_tokens() as f64 / seconds } else { 0.0 }
}

/// What `score` prints.
#[derive(Debug, Serialize)]
pub(crate) struct ScoredText<'a> {
    tokens: &'a [u32],
    logprobs: Vec<f64>,
    sum: f64,
    /// Null for a single token.
    perplexity: Option<f64>,
    /// For each of `logprobs`, the likeliest tokens at its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<Vec<Vec<(u32, f64)>>>,
}

impl<'a> ScoredText<'a> {
    pub(crate) fn new(scored: &'a Scored) -> Self {
        Self {
            tokens: &scored.tokens,
            logprobs: widened(&scored.logprobs),
            sum: scored.sum(),
            perplexity: scored.perplexity(),
            top: scored
                .top
                .iter()
                .any(|it| !it.is_empty())
                .then(|| scored.top.iter().map(|it| top(it)).collect()),
        }
    }
}

/// What `info` prints.
#[derive(Debug, Serialize)]
pub(crate) struct ModelInfo {
    pub(crate) model: String,
    pub(crate) model_type: String,
    pub(crate) parameters: usize,
    pub(crate) bytes: usize,
    pub(crate) dtype: String,
    pub(crate) components: ComponentInfo,
    /// By layer the length of its window, or null.
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) max_position_embeddings: usize,
    pub(crate) kv_bytes_per_token: usize,
    pub(crate) tokenizer_size: Option<usize>,
    pub(crate) chat_template: bool,
    pub(crate) eos_token_id: Option<Value>,
}

/// The parts that were found in a model.
#[derive(Debug, Serialize)]
pub(crate) struct ComponentInfo {
    /// Tokens and width.
    pub(crate) embedding: [usize; 2],
    pub(crate) layers: usize,
    pub(crate) norm: bool,
    /// `tied` to the embedding, or its `own`.
    pub(crate) lm_head: &'static str,
    pub(crate) quantized_head: bool,
}

impl ModelInfo {
    /// What is known of a loaded model.
    pub(crate) fn of(model: &Model) -> Self {
        use mlx_genkit::{kv_cache::LayerSpec, mlx_models::detect_components};
        let decoder = model.decoder();
        let (parts, footprint) = (detect_components(decoder), decoder.footprint());
        let window = |it: &LayerSpec| match it {
            LayerSpec::Sliding { window } => Some(*window),
            _ => None,
        };
        Self {
            model: model.name().to_owned(),
            model_type: decoder.model_type().to_owned(),
            parameters: footprint.parameters,
            bytes: footprint.bytes,
            dtype: format!("{:?}", decoder.dtype()).to_lowercase(),
            components: ComponentInfo {
                embedding: parts.embedding,
                layers: parts.layers,
                norm: true,
                lm_head: if parts.tied_head { "tied" } else { "own" },
                quantized_head: parts.quantized,
            },
            windows: decoder.layers().iter().map(window).collect(),
            max_position_embeddings: decoder.max_positions(),
            kv_bytes_per_token: decoder.kv_bytes_per_token(),
            tokenizer_size: model.tokenizer().ok().map(|it| it.vocab_size()),
            chat_template: model.has_chat_template(),
            eos_token_id: model.generation_config().get("eos_token_id"),
        }
    }
}
