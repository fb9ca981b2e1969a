//! A request of which everything is settled but the tokens.

use std::time::Instant;

use mlx_rs::Array;
use mlxgk_decoding_strategies::{
    DEFAULT_PREFILL_CHUNK, Record, RowGroup, Rules, StoppingCriterion,
};
use mlxgk_generation_config::{
    Chat, GenerationMode, RequestFields, Resolved, Sources, Warning, WarningKind,
};
use mlxgk_kv_cache::{CacheOptions, KvCache, PrefixScope, PrefixStore, RowId};
use mlxgk_logits_processors::LogitsProcessor;
use mlxgk_mlx_models::{MtpHeads, NoHook, ResidualHook};
use mlxgk_tokenizer_bridge::Message;

use crate::{
    Abilities, Ability, Assistant, AssistedRequest, Error, ErrorKind, Generation, Model, Prompt,
    Result, Seed, TokenStream,
    assistant::guesses_by_heads,
    attentions::AttentionRecorder,
    caches::{cache_options, check_resumed},
    healing::Healing,
    hidden::HiddenRecorder,
    memory::Demand,
    row_adapters::RowAdapters,
};

/// Far more than any machine runs at once; beyond it lies nothing but a typing error and its
/// allocations.
const MAX_ROWS: usize = 65_536;

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
    pub(crate) fn new(model: &'a Model, request: AssistedRequest<'a>) -> Result<Self> {
        let begun = Instant::now();
        let AssistedRequest { mut request, assistant } = request;
        if request.guardrails.is_some() {
            let what = "guardrails look at whole texts: they are for `Model::generate`, and for neither \
                        plans, streams nor a `Batch`";
            return Err(Error::new(ErrorKind::Request, what));
        }
        let kwargs = &request.overrides;
        let sources = Sources { kwargs, passed: &request.config, model: model.generation_config() };
        let mut merged = sources.merge()?;
        let asked = merged.config.request_fields()?;
        if let Some(name) = asked.draft_model.as_deref().filter(|_| assistant.is_none()) {
            let (field, what) = (
                "draft_model_id",
                format!(
                    "`draft_model_id` is {name:?}: load it and give it to `Request::assistant`"
                ),
            );
            merged.warnings.push(Warning::new(WarningKind::UnknownField, field, what));
        }
        request.prompts = in_chat(request.prompts, &asked, model)?;
        let mut prompts = ids(&request.prompts, model)?;
        let mut healing = Vec::new();
        if merged.config.token_healing == Some(true) {
            if request.soft_prompt.is_some() {
                let what = "`token_healing` is not available together with a soft prompt";
                return Err(Error::of_field("token_healing", what));
            }
            healing = Healing::plan(model, &request.prompts)?;
            prompts = healing.iter().map(|it| it.ids.clone()).collect();
        }
        let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let context = model.decoder().max_positions();
        let mut resolved = merged.resolve(width, Some(context))?;
        if width > context {
            let field = "max_position_embeddings";
            let what = format!(
                "the prompt has {width} tokens, but the model was made for {context} (`{field}`), so \
                 that what follows may make no sense"
            );
            resolved.warnings.push(Warning::new(WarningKind::Length, field, what));
        }
        // A generation has room for all of these; HF's asks for another field to return them.
        let returned =
            ["output_scores", "output_logits", "output_hidden_states", "output_attentions"];
        resolved.warnings.retain(|it| !returned.contains(&it.field()));
        resolved.mode = resolved.config.generation_mode(assistant.is_some());
        if resolved.mode == GenerationMode::ContrastiveSearch {
            // HF 5.23, which has dropped this mode, says that only sampling reads it.
            resolved.warnings.retain(|it| it.field() != "top_k");
        }
        let (copies, field) = if resolved.mode.streams() {
            (resolved.num_return_sequences, "num_return_sequences")
        } else {
            (resolved.num_beams, "num_beams")
        };
        let rows = rows(prompts.len(), copies, field)?;
        let side = if guidance_scale(&resolved).is_some() { 2 } else { 1 };
        let (tried, many) = match resolved.mode {
            GenerationMode::ContrastiveSearch => (
                resolved.config.top_k.unwrap_or(1).min(model.decoder().vocab_size()),
                Some("top_k"),
            ),
            _ => (1, (copies > 1).then_some(field)),
        };
        let most = resolved.cache.bound.map_or(usize::MAX, |it| it.size);
        let (held, room) = (width.min(most), most.saturating_sub(width));
        let chunk = resolved.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK);
        // Draws are taken for all rows in turn, and what else is asked for bears on all prompts at once, or
        // on the time that they have.
        let in_parts = resolved.mode == GenerationMode::GreedySearch
            && resolved.config.use_cache != Some(false)
            && resolved.config.max_time.is_none()
            && request.criteria.is_empty()
            && request.soft_prompt.is_none()
            && healing.is_empty()
            && model.decoder().original_context().is_none();
        let demand = Demand {
            prompts: prompts.len(),
            rows: (copies * side).saturating_mul(tried),
            columns: held,
            new_tokens: resolved.lengths.max_new_tokens().min(room),
            read: width.min(chunk).saturating_mul(side),
            in_parts,
        };
        let part = demand.part(model.decoder(), many)?;
        let hidden = HiddenRecorder::new(request.hidden_states, &resolved, model.decoder())?;
        let attentions = AttentionRecorder::new(request.attentions, &resolved, model.decoder())?;
        let is_hooked = request.hook.is_some()
            || request.steering.is_some()
            || hidden.is_some()
            || attentions.is_some()
            || !request.adapters.is_empty();
        // A hook without a name looks on, and has to see every token, and so have heads.
        let looks_on = hidden.is_some()
            || attentions.is_some()
            || guesses_by_heads(&resolved.config)
            || request.hook.as_ref().is_some_and(|it| {
                request.steering.is_some() || it.name(RowId::default()).is_none()
            });
        let steering = request.steering.map(|it| it.hook(model.decoder())).transpose()?;
        // Steering alone is not wrapped: where it only adds, a batch serves its rows with others'.
        let mut hook: Box<dyn ResidualHook + 'a> = match (steering, request.hook) {
            (Some(steering), Some(hook)) => Box::new((steering, hook)),
            (Some(steering), None) => Box::new(steering),
            (None, Some(hook)) => hook,
            (None, None) => Box::new(NoHook),
        };
        if let Some(hidden) = &hidden {
            hook = Box::new((hook, hidden.clone()));
        }
        if let Some(attentions) = &attentions {
            hook = Box::new((hook, attentions.clone()));
        }
        let beams = !resolved.mode.streams();
        let of_rows = [prompts.len(), if beams { 1 } else { copies }];
        let adapters = RowAdapters::new(request.adapters, of_rows, model)?;
        if let Some(adapters) = &adapters {
            hook = Box::new((hook, adapters.clone()));
        }
        let record = Record {
            scores: resolved.config.output_scores == Some(true),
            logits: resolved.config.output_logits == Some(true),
            logprobs: request.logprobs,
        };
        let rules = rules(&resolved, model, request.processors, request.criteria, request.seed)?;
        resolved.warnings.extend_from_slice(&rules.warnings);
        let is_bounded = resolved.cache.bound.is_some()
            || request.cache.as_ref().is_some_and(|it| it.options().bound.is_some());
        let wanted = [
            (prompts.len() > 1, Ability::SeveralPrompts),
            (resolved.num_return_sequences > 1, Ability::SeveralSequences),
            (
                assistant.is_some()
                    || resolved.config.use_mtp == Some(true)
                    || resolved.config.prompt_lookup_num_tokens.is_some()
                    || resolved.config.assistant_early_exit.is_some(),
                Ability::Assistant,
            ),
            (guidance_scale(&resolved).is_some(), Ability::Guidance),
            (resolved.config.dola_layers.is_some(), Ability::DolaLayers),
            (record != Record::default(), Ability::Scores),
            (hidden.is_some(), Ability::HiddenStates),
            (attentions.is_some(), Ability::Attentions),
            (resolved.config.use_cache == Some(false), Ability::Uncached),
            (request.cache.is_some(), Ability::ResumesCache),
            (is_bounded, Ability::BoundedCache),
            (hook.budget(RowId::default()).is_some(), Ability::KlBudget),
            (resolved.has_grammar(), Ability::Grammar),
            (rules.stop.has_criteria(), Ability::Criteria),
            (request.soft_prompt.is_some(), Ability::SoftPrompt),
        ];
        let wanted: Vec<Ability> =
            wanted.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, it)| it).collect();
        Abilities::of(resolved.mode).check(&wanted)?;
        let by_heads = guesses_by_heads(&resolved.config);
        let heads = by_heads.then(|| model.mtp_heads()).transpose()?;
        let cache_options = cache_options(&resolved.cache, model)?;
        if let Some(cache) = &request.cache {
            check_resumed(cache, &cache_options)?;
            let names: Vec<_> = cache.row_ids().iter().map(|&row| hook.name(row)).collect();
            cache.check_steering(&names)?;
        }
        if let Some(soft_prompt) = &request.soft_prompt {
            check_soft_prompt(soft_prompt, width, model)?;
        }
        let is_single = prompts.len() == 1
            && request.cache.is_none()
            && request.soft_prompt.is_none()
            && resolved.config.use_cache != Some(false)
            && guidance_scale(&resolved).is_none()
            && hook.budget(RowId::default()).is_none()
            && model.decoder().original_context().is_none();
        let prefixes = request.prefixes.filter(|_| is_single && !looks_on);
        let prefixes = prefixes.map(|store| {
            let layers = model.decoder().cache_layers();
            let scope =
                PrefixScope::new(model.fingerprint()?, layers, &cache_options, store.salt());
            Ok::<_, Error>((store, scope))
        });
        let prefixes = prefixes.transpose()?;
        // Beside guesses the two texts do not run in step, and each has a cache of its own.
        let is_assisted = resolved.mode == GenerationMode::AssistedGeneration;
        let pairs = guidance_scale(&resolved).filter(|_| !is_assisted);
        let group = RowGroup::new(rules).record(record).guidance(pairs);
        Ok(Self {
            pad: padding_token(&resolved, rows, model)?,
            group,
            negative_prompts: negative_prompts(
                &resolved,
                model,
                &request.negative_prompts,
                &prompts,
            )?,
            trimmed: match &resolved.config.stop_strings {
                Some(strings) if request.trim_stop => strings.as_slice().to_vec(),
                _ => Vec::new(),
            },
            cache: request.cache,
            soft_prompt: request.soft_prompt,
            cache_options,
            prefixes,
            model,
            prompts,
            healing,
            copies,
            part,
            hidden,
            attentions,
            hook,
            is_hooked,
            choose_on_device: request.choose_on_device && !is_hooked,
            adapters,
            assistant,
            heads,
            begun,
            resolved,
        })
    }

    /// The strategy that the request's fields ask for.
    pub fn mode(&self) -> GenerationMode {
        self.resolved.mode
    }

    /// Whether tokens can be handed out as they are made.
    pub fn streams(&self) -> bool {
        Abilities::of(self.mode()).has(Ability::Streaming)
    }

    /// The merged fields, and the lengths and special tokens that they come to.
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

/// Puts plain prompts into a conversation, where the config says so.
fn in_chat(prompts: Vec<Prompt>, asked: &RequestFields, model: &Model) -> Result<Vec<Prompt>> {
    let system = asked.system_prompt.as_deref();
    let wraps = match asked.chat {
        Some(Chat::Always) => true,
        Some(Chat::IfTemplate) => model.has_chat_template(),
        Some(Chat::Never) => false,
        None => system.is_some(),
    };
    let is_text = |it: &Prompt| matches!(it, Prompt::Text(_));
    if system.is_some() && !wraps && prompts.iter().any(is_text) {
        let what = "`system_prompt` needs the chat template, which `auto_chat_template` leaves out or the \
                    model has not";
        return Err(Error::of_field("system_prompt", what));
    }
    let chatted = |prompt| match prompt {
        Prompt::Text(text) if wraps => {
            let system = system.map(|it| Message::new("system", it));
            Prompt::Messages(system.into_iter().chain([Message::new("user", text)]).collect())
        }
        other => other,
    };
    Ok(prompts.into_iter().map(chatted).collect())
}

/// The prompts' token ids; where there are several, an error says which is wrong.
fn ids(prompts: &[Prompt], model: &Model) -> Result<Vec<Vec<u32>>> {
    if prompts.is_empty() {
        return Err(Error::new(ErrorKind::Request, "there is no prompt"));
    }
    let several = prompts.len() > 1;
    let ids = |(index, prompt): (usize, &Prompt)| {
        prompt.ids(model).map_err(|e| if several { e.of_prompt(index) } else { e })
    };
    prompts.iter().enumerate().map(ids).collect()
}

/// Refuses a soft prompt for another model, or one that leaves the prompts no room.
fn check_soft_prompt(soft_prompt: &Array, width: usize, model: &Model) -> Result<()> {
    let refuse = |what: String| Err(Error::new(ErrorKind::Request, what));
    let (hidden, found) = (model.decoder().hidden_size(), soft_prompt.dim(1) as usize);
    if found != hidden {
        return refuse(format!(
            "the soft prompt is for a model with hidden size {found}, but this one has {hidden}"
        ));
    }
    let (count, context) = (soft_prompt.dim(0) as usize, model.decoder().max_positions());
    if count + width > context {
        return refuse(format!(
            "a soft prompt of {count} tokens and a prompt of {width} are more than the context of {context}"
        ));
    }
    Ok(())
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
            Err(Error::of_field(field, what))
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
            Err(Error::of_field("pad_token_id", what))
        }
        pad => Ok(pad.unwrap_or(0)),
    }
}

/// How tokens are chosen and rows end: what the fields ask for, and the caller's own.
fn rules(
    resolved: &Resolved,
    model: &Model,
    processors: Vec<Box<dyn LogitsProcessor>>,
    criteria: Vec<Box<dyn StoppingCriterion>>,
    seed: Seed,
) -> Result<Rules> {
    if !model.has_tokenizer()
        && let Some(field) = Rules::field_about_text(resolved)
    {
        let what = format!(
            "`{field}` is about text, but {} has no tokenizer.json to tell what a token spells",
            model.name()
        );
        return Err(Error::of_field(field, what));
    }
    let mut rules = Rules::new(resolved, model.decoder().vocab_size(), model.text(), seed)?;
    rules.processors = rules.processors.with_user_processors(processors);
    criteria.into_iter().for_each(|it| rules.stop.push(it));
    Ok(rules)
}

/// `guidance_scale` where it guides.
pub(crate) fn guidance_scale(resolved: &Resolved) -> Option<f64> {
    resolved.config.guidance_scale.filter(|it| *it != 1.0)
}

/// What `guidance_scale` moves away from, as token ids.
fn negative_prompts(
    resolved: &Resolved,
    model: &Model,
    negative: &[Prompt],
    prompts: &[Vec<u32>],
) -> Result<Vec<Vec<u32>>> {
    let refuse = |what: String| Err(Error::of_field("guidance_scale", what));
    match guidance_scale(resolved) {
        None if negative.is_empty() => return Ok(Vec::new()),
        None => return refuse("negative prompts need a `guidance_scale` other than 1".into()),
        Some(scale) if !scale.is_finite() => {
            return refuse(format!("`guidance_scale` must be a finite number, but is {scale}"));
        }
        Some(_) => {}
    }
    if !matches!(negative.len(), 0 | 1) && negative.len() != prompts.len() {
        let what = format!("{} negative prompts for {} prompts", negative.len(), prompts.len());
        return refuse(what);
    }
    negative.iter().map(|it| it.ids(model)).collect()
}
