//! A request of which everything is settled but the tokens.

use std::time::Instant;

use mlx_rs::Array;
use mlxgk_decoding_strategies::{RowGroup, Rules};
use mlxgk_generation_config::{GenerationMode, Resolved, Warning};
use mlxgk_kv_cache::{CacheOptions, KvCache, PrefixScope, PrefixStore};
use mlxgk_mlx_models::{MtpHeads, ResidualHook};

use crate::{
    Abilities, Ability, Assistant, Generation, Model, Result, TokenStream,
    attentions::AttentionRecorder, healing::Healing, hidden::HiddenRecorder,
    row_adapters::RowAdapters,
};

/// A request that was checked: what is wrong with it is known, and the device has not begun.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model, Request, generation_config::GenerationMode};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let plan = model.plan(Request::new("Once upon a time"))?;
/// assert_eq!(plan.mode(), GenerationMode::GreedySearch);
/// assert!(plan.streams());
/// println!("{}", plan.generate()?.sequences[0].text);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
pub struct Plan<'a> {
    pub(crate) model: &'a Model,
    pub(crate) resolved: Resolved,
    /// The prompts as they are, unpadded.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// What is to be done to their last tokens first; empty where nothing is.
    pub(crate) healing: Vec<Healing>,
    pub(crate) pad: u32,
    /// Rows that run for each prompt: its sequences, or its beams.
    pub(crate) copies: usize,
    /// How many prompts run at once, where not all can.
    pub(crate) part: Option<usize>,
    /// What all rows share.
    pub(crate) group: RowGroup,
    /// What guidance moves away from: for every prompt, for each, or each one's last token.
    pub(crate) negative_prompts: Vec<Vec<u32>>,
    /// Strings that the text is to end before, where it is stopped at them.
    pub(crate) trimmed: Vec<String>,
    /// Special tokens that are part of the texts.
    pub(crate) shown: Vec<u32>,
    pub(crate) hidden: Option<HiddenRecorder>,
    pub(crate) attentions: Option<AttentionRecorder>,
    pub(crate) hook: Box<dyn ResidualHook + 'a>,
    pub(crate) is_hooked: bool,
    /// Whether the device chooses the tokens, where it can.
    pub(crate) choose_on_device: bool,
    /// The adapters of its rows, where it chooses any.
    pub(crate) adapters: Option<RowAdapters>,
    pub(crate) assistant: Option<Assistant<'a>>,
    /// The model's own heads, where those guess.
    pub(crate) heads: Option<&'a MtpHeads>,
    pub(crate) cache: Option<KvCache>,
    pub(crate) soft_prompt: Option<Array>,
    /// How a new cache keeps its columns.
    pub(crate) cache_options: CacheOptions,
    /// Where a prompt's beginning may be found.
    pub(crate) prefixes: Option<(PrefixStore, PrefixScope)>,
    pub(crate) begun: Instant,
}

impl<'a> Plan<'a> {
    /// The strategy that the request's fields ask for.
    pub fn mode(&self) -> GenerationMode {
        self.resolved.mode
    }

    /// Whether tokens can be handed out as they are made.
    pub fn streams(&self) -> bool {
        Abilities::of(self.mode()).has(Ability::Streaming)
    }

    /// The merged fields, and the lengths and special tokens that follow from them.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// The processors in the order of application, the choice and the stop conditions.
    pub fn rules(&self) -> &Rules {
        self.group.rules()
    }

    /// How many scores each step has.
    pub fn vocab_size(&self) -> usize {
        self.model.decoder().vocab_size()
    }

    /// The tokens of each prompt, without padding.
    pub fn prompts(&self) -> &[Vec<u32>] {
        &self.prompts
    }

    /// How the cache keeps its columns: that to resume, or a new one.
    pub(crate) fn kept_as(&self) -> &CacheOptions {
        self.cache.as_ref().map_or(&self.cache_options, KvCache::options)
    }

    /// The warnings about the configuration that HF would give.
    pub fn warnings(&self) -> &[Warning] {
        &self.resolved.warnings
    }

    /// Runs the request to its end; see [`Model::generate`].
    ///
    /// # Errors
    /// When the model or one of the sequences fails.
    pub fn generate(self) -> Result<Generation> {
        Ok(self.run()?.0)
    }

    /// Runs the request to its end, and gives up the cache where there is one to resume.
    pub(crate) fn run(self) -> Result<(Generation, Option<KvCache>)> {
        let mut stream = TokenStream::start(self)?;
        stream.run_out()?;
        stream.finished()
    }

    /// Starts the request; see [`Model::stream`].
    ///
    /// # Errors
    /// When the mode cannot stream, or the model fails.
    pub fn stream(self) -> Result<TokenStream<'a>> {
        Abilities::of(self.mode()).check(&[Ability::Streaming])?;
        TokenStream::start(self)
    }
}

impl std::fmt::Debug for Plan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut it = f.debug_struct("Plan");
        it.field("mode", &self.mode()).field("prompts", &self.prompts).field("group", &self.group);
        it.finish_non_exhaustive()
    }
}
