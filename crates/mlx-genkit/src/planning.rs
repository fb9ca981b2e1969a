//! From a request to a [`Plan`]: fields are merged, prompts encoded, and what cannot be is refused.

use std::mem::take;
use std::time::Instant;

use mlx_rs::Array;
use mlxgk_decoding_strategies::{
    DEFAULT_PREFILL_CHUNK, Record, RowGroup, Rules, StoppingCriterion,
};
use mlxgk_generation_config::{
    Chat, GenerationMode, Merged, RequestFields, Resolved, Sources, Warning, WarningKind,
};
use mlxgk_kv_cache::{CacheOptions, PrefixScope, PrefixStore, RowId};
use mlxgk_logits_processors::LogitsProcessor;
use mlxgk_mlx_models::ResidualHook;
use mlxgk_tokenizer_bridge::Message;

use crate::{
    Abilities, Ability, AssistedRequest, Error, ErrorKind, Model, Plan, Prompt, Request, Result,
    Seed,
    assistant::guesses_by_heads,
    caches::{cache_options, check_resumed},
    healing::Healing,
    memory::Demand,
    watchers::Watchers,
};

impl<'a> Plan<'a> {
    pub(crate) fn new(model: &'a Model, request: AssistedRequest<'a>) -> Result<Self> {
        let begun = Instant::now();
        let AssistedRequest { mut request, assistant } = request;
        let merged = merged(&request, model, assistant.is_some())?;
        // Again below, with the copies of each; so many are not even encoded.
        check_rows(request.prompts.len(), 1, "num_return_sequences")?;
        let (prompts, healing) = encoded(&mut request, &merged, model)?;
        let mut resolved = resolved(&merged, &prompts, model, assistant.is_some())?;
        let (copies, _) = copies(&resolved);
        let part = part(&request, &resolved, &prompts, model)?;
        let watchers = Watchers::new(&mut request, &resolved, [prompts.len(), copies], model)?;
        let record = Record {
            scores: resolved.config.output_scores == Some(true),
            logits: resolved.config.output_logits == Some(true),
            logprobs: request.logprobs,
        };
        let (processors, criteria) = (take(&mut request.processors), take(&mut request.criteria));
        let rules = rules(&resolved, model, processors, criteria, request.seed)?;
        resolved.warnings.extend_from_slice(&rules.warnings);
        let asks_assistant = assistant.is_some() || guesses_alone(&resolved);
        check_abilities(&request, &resolved, &watchers, &rules, (record, asks_assistant))?;
        let by_heads = guesses_by_heads(&resolved.config);
        let heads = by_heads.then(|| model.mtp_heads()).transpose()?;
        let cache_options = cache_options(&resolved.cache, model)?;
        if let Some(cache) = &request.cache {
            check_resumed(cache, &cache_options)?;
            let name = |&row: &RowId| watchers.hook.name(row);
            cache.check_steering(&cache.row_ids().iter().map(name).collect::<Vec<_>>())?;
        }
        if let Some(soft_prompt) = &request.soft_prompt {
            check_soft_prompt(soft_prompt, width(&prompts), model)?;
        }
        let prefixes = prefixes(&mut request, &resolved, &watchers, &cache_options, model)?;
        // Beside guesses the two texts do not run in step, and each has a cache of its own.
        let is_assisted = resolved.mode == GenerationMode::AssistedGeneration;
        let pairs = guidance_scale(&resolved).filter(|_| !is_assisted);
        Ok(Self {
            pad: padding_token(&resolved, prompts.len() * copies, model)?,
            group: RowGroup::new(rules).record(record).guidance(pairs),
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
            shown: request.shown,
            cache: request.cache,
            soft_prompt: request.soft_prompt,
            cache_options,
            prefixes,
            model,
            prompts,
            healing,
            copies,
            part,
            hidden: watchers.hidden,
            attentions: watchers.attentions,
            hook: watchers.hook,
            is_hooked: watchers.is_hooked,
            choose_on_device: request.choose_on_device && !watchers.is_hooked,
            adapters: watchers.adapters,
            assistant,
            heads,
            begun,
            resolved,
        })
    }
}

/// The request's fields over those of the model.
fn merged(request: &Request<'_>, model: &Model, has_assistant: bool) -> Result<Merged> {
    if request.guardrails.is_some() {
        let what = "guardrails look at whole texts: they are for `Model::generate`, and for neither \
                    plans, streams nor a `Batch`";
        return Err(Error::new(ErrorKind::Request, what));
    }
    let (kwargs, passed) = (&request.overrides, &request.config);
    let mut merged = Sources { kwargs, passed, model: model.generation_config() }.merge()?;
    if let Some(name) = merged.config.request_fields()?.draft_model.filter(|_| !has_assistant) {
        let what =
            format!("`draft_model_id` is {name:?}: load it and give it to `Request::assistant`");
        merged.warnings.push(Warning::new(WarningKind::UnknownField, "draft_model_id", what));
    }
    Ok(merged)
}

/// The prompts' tokens, and what is to be done to their last ones.
fn encoded(
    request: &mut Request<'_>,
    merged: &Merged,
    model: &Model,
) -> Result<(Vec<Vec<u32>>, Vec<Healing>)> {
    let asked = merged.config.request_fields()?;
    request.prompts = in_chat(take(&mut request.prompts), &asked, model)?;
    let prompts = ids(&request.prompts, model)?;
    if merged.config.token_healing != Some(true) {
        return Ok((prompts, Vec::new()));
    }
    if request.soft_prompt.is_some() {
        let what = "`token_healing` is not available together with a soft prompt";
        return Err(Error::of_field("token_healing", what));
    }
    let healing = Healing::plan(model, &request.prompts)?;
    Ok((healing.iter().map(|it| it.ids.clone()).collect(), healing))
}

fn width(prompts: &[Vec<u32>]) -> usize {
    prompts.iter().map(Vec::len).max().unwrap_or(0)
}

/// What the fields come to for these prompts and this model.
fn resolved(
    merged: &Merged,
    prompts: &[Vec<u32>],
    model: &Model,
    has_assistant: bool,
) -> Result<Resolved> {
    let (width, context) = (width(prompts), model.decoder().max_positions());
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
    let returned = ["output_scores", "output_logits", "output_hidden_states", "output_attentions"];
    resolved.warnings.retain(|it| !returned.contains(&it.field()));
    resolved.mode = resolved.config.generation_mode(has_assistant);
    if resolved.mode == GenerationMode::ContrastiveSearch {
        // HF 5.23, which has dropped this mode, says that only sampling reads it.
        resolved.warnings.retain(|it| it.field() != "top_k");
    }
    Ok(resolved)
}

/// How many rows run for each prompt, and the field that says so.
fn copies(resolved: &Resolved) -> (usize, &'static str) {
    match resolved.mode.streams() {
        true => (resolved.num_return_sequences, "num_return_sequences"),
        false => (resolved.num_beams, "num_beams"),
    }
}

/// How many prompts run at once, where not all can.
fn part(
    request: &Request<'_>,
    resolved: &Resolved,
    prompts: &[Vec<u32>],
    model: &Model,
) -> Result<Option<usize>> {
    let (copies, field) = copies(resolved);
    check_rows(prompts.len(), copies, field)?;
    let side = if guidance_scale(resolved).is_some() { 2 } else { 1 };
    let (tried, many) = match resolved.mode {
        GenerationMode::ContrastiveSearch => {
            let tried = resolved.config.top_k.unwrap_or(1).min(model.decoder().vocab_size());
            (tried, Some("top_k"))
        }
        _ => (1, (copies > 1).then_some(field)),
    };
    let (width, most) = (width(prompts), resolved.cache.bound.map_or(usize::MAX, |it| it.size));
    let chunk = resolved.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK);
    // Draws are taken for all rows in turn, and what else is asked for bears on all prompts at once, or
    // on the time that they have.
    let in_parts = resolved.mode == GenerationMode::GreedySearch
        && resolved.config.use_cache != Some(false)
        && resolved.config.max_time.is_none()
        && resolved.config.token_healing != Some(true)
        && request.criteria.is_empty()
        && request.soft_prompt.is_none()
        && model.decoder().original_context().is_none();
    let demand = Demand {
        prompts: prompts.len(),
        rows: (copies * side).saturating_mul(tried),
        columns: width.min(most),
        new_tokens: resolved.lengths.max_new_tokens().min(most.saturating_sub(width)),
        read: width.min(chunk).saturating_mul(side),
        in_parts,
    };
    demand.part(model.decoder(), many)
}

/// Whether the config asks for guesses that need no other model.
fn guesses_alone(resolved: &Resolved) -> bool {
    let config = &resolved.config;
    config.use_mtp == Some(true)
        || config.prompt_lookup_num_tokens.is_some()
        || config.assistant_early_exit.is_some()
}

/// Refuses what the mode cannot be combined with.
fn check_abilities(
    request: &Request<'_>,
    resolved: &Resolved,
    watchers: &Watchers<'_>,
    rules: &Rules,
    (record, asks_assistant): (Record, bool),
) -> Result<()> {
    let is_bounded = resolved.cache.bound.is_some()
        || request.cache.as_ref().is_some_and(|it| it.options().bound.is_some());
    let wanted = [
        (request.prompts.len() > 1, Ability::SeveralPrompts),
        (resolved.num_return_sequences > 1, Ability::SeveralSequences),
        (asks_assistant, Ability::Assistant),
        (guidance_scale(resolved).is_some(), Ability::Guidance),
        (resolved.config.dola_layers.is_some(), Ability::DolaLayers),
        (record != Record::default(), Ability::Scores),
        (watchers.hidden.is_some(), Ability::HiddenStates),
        (watchers.attentions.is_some(), Ability::Attentions),
        (resolved.config.use_cache == Some(false), Ability::Uncached),
        (request.cache.is_some(), Ability::ResumesCache),
        (is_bounded, Ability::BoundedCache),
        (watchers.has_budget(), Ability::KlBudget),
        (resolved.has_grammar(), Ability::Grammar),
        (rules.stop.has_criteria(), Ability::Criteria),
        (request.soft_prompt.is_some(), Ability::SoftPrompt),
    ];
    let wanted: Vec<Ability> =
        wanted.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, it)| it).collect();
    Abilities::of(resolved.mode).check(&wanted)
}

/// Where the prompt's beginning may be found, if it may be.
fn prefixes(
    request: &mut Request<'_>,
    resolved: &Resolved,
    watchers: &Watchers<'_>,
    options: &CacheOptions,
    model: &Model,
) -> Result<Option<(PrefixStore, PrefixScope)>> {
    let is_single = request.prompts.len() == 1
        && request.cache.is_none()
        && request.soft_prompt.is_none()
        && resolved.config.use_cache != Some(false)
        && guidance_scale(resolved).is_none()
        && !watchers.has_budget()
        && !watchers.must_see_all
        && model.decoder().original_context().is_none();
    let Some(store) = request.prefixes.take().filter(|_| is_single) else { return Ok(None) };
    let layers = model.decoder().cache_layers();
    let scope = PrefixScope::new(model.fingerprint()?, layers, options, store.salt());
    Ok(Some((store, scope)))
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

/// Refuses more sequences than any machine runs at once.
fn check_rows(prompts: usize, copies: usize, field: &str) -> Result<()> {
    match prompts.checked_mul(copies) {
        Some(rows) if rows <= Request::MAX_SEQUENCES => Ok(()),
        _ => {
            let what = format!(
                "the request makes {prompts} × {copies} sequences (prompts × `{field}`); at most {} run at once",
                Request::MAX_SEQUENCES
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
