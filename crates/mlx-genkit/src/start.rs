//! From a plan to a loop: prompts are healed and fed, and the mode's loop continues them.

use std::sync::{Arc, Mutex};

use mlxgk_decoding_strategies::{
    AheadLoop, AssistedLoop, BeamOptions, BeamSearch, CandidateGenerator, Constraint,
    ContinuousBatch, ContrastiveLoop, ContrastiveOptions, ContrastiveSession,
    DEFAULT_PREFILL_CHUNK, DecoderSession, DeviceChoice, DolaLayers, EarlyStopping, FinalStates,
    Guide, HeapBeamSearch, InParts, LeftPadded, MtpDraft, Prefill, RowGroup, RowId, SampleLoop,
    TokenLoop, Variant,
};
use mlxgk_generation_config::{self as fields, GenerationMode, Resolved};
use mlxgk_kv_cache::KvCache;
use mlxgk_mlx_models::NoHook;

use crate::{
    Error, ErrorKind, Model, Result, assistant::generator, healing::Healing, output::Answer,
    plan::Plan, planning::guidance_scale,
};

/// Feeds the prompts and starts the loop that continues them.
pub(crate) fn start<'a>(mut plan: Plan<'a>) -> Result<(Box<dyn TokenLoop + 'a>, Answer<'a>)> {
    let mut answer = prepare(&mut plan, RowId::new(0))?;
    Ok((begin(plan, &mut answer)?, answer))
}

/// Feeds a prompt, and gives up the cache.
pub(crate) fn read(plan: Plan<'_>) -> Result<KvCache> {
    if plan.prompts.len() > 1 || plan.group.is_guided() {
        let what = "a cache to keep holds one prompt, without negative ones";
        return Err(Error::new(ErrorKind::Request, what));
    }
    let (prefill, ..) = fed(plan, RowId::new(0))?;
    let cache = prefill.finish()?.into_cache();
    cache.evaluate()?;
    Ok(cache)
}

/// Puts the prompts into the queue of a batch.
pub(crate) fn join<'a>(
    mut plan: Plan<'a>,
    batch: &mut ContinuousBatch<'a>,
) -> Result<(RowId, Answer<'a>)> {
    let sides = if plan.group.is_guided() { 2 } else { 1 };
    let count = plan.prompts.len() * plan.copies * sides;
    let first = batch.reserve(count);
    if let Some(adapters) = &plan.adapters {
        adapters.begin_at(first);
    }
    let own = std::mem::replace(&mut plan.hook, Box::new(batch.hook()));
    if plan.is_hooked {
        batch.register(first, count, own);
    }
    let mut answer = prepare(&mut plan, first)?;
    let prompts = LeftPadded::new(&plan.prompts, plan.pad)?;
    let (prefill, copies, group) = fed(plan, first)?;
    answer.note_cached(prefill.cached());
    batch.join(first, prefill, &prompts, copies, group)?;
    Ok((first, answer))
}

/// What comes before the prompts are fed.
fn prepare<'a>(plan: &mut Plan<'a>, first: RowId) -> Result<Answer<'a>> {
    if !plan.healing.is_empty() {
        plan.prompts = Healing::run(plan.model, &mut plan.healing)?;
    }
    Answer::new(plan, first)
}

/// The prompts, and with guidance what they are moved away from, on their way into a cache; how often
/// each is then continued, and what the rows share. `first` is the id that the first row has for the hook.
fn fed(mut plan: Plan<'_>, first: RowId) -> Result<(Prefill<'_>, usize, RowGroup)> {
    let decoder = plan.model.decoder();
    let mut rows = std::mem::take(&mut plan.prompts);
    if plan.group.is_guided() {
        rows.extend(negatives(&rows, &plan.negative_prompts));
    }
    let prefill = match (plan.cache, plan.prefixes) {
        (Some(cache), _) => Prefill::resume(decoder, cache, &rows[0], plan.hook)?,
        (None, Some(shared)) => {
            let options = (&plan.cache_options, first);
            Prefill::shared(decoder, &rows[0], plan.hook, options, shared)?
        }
        (None, None) => {
            let prompts = LeftPadded::new(&rows, plan.pad)?;
            let fresh = Prefill::with_options(decoder, &prompts, plan.hook, &plan.cache_options)?;
            fresh.reserve(reserved(&plan.resolved, plan.model))
        }
    };
    let prefill = match &plan.soft_prompt {
        Some(soft_prompt) => prefill.soft_prompt(soft_prompt)?,
        None => prefill,
    };
    Ok((prefill.chunk(chunk(&plan.resolved)), plan.copies, plan.group.pad(plan.pad)))
}

/// Columns that are made room for at once.
fn reserved(resolved: &Resolved, model: &Model) -> usize {
    // What goes beyond the model's context, nobody has to make room for beforehand.
    resolved.cache.capacity.unwrap_or(0).min(model.decoder().max_positions())
}

fn chunk(resolved: &Resolved) -> usize {
    resolved.prefill_chunk_size.unwrap_or(DEFAULT_PREFILL_CHUNK)
}

/// The loop of a greedy request that runs `most` prompts at once.
fn in_parts<'a>(plan: Plan<'a>, most: usize) -> Result<Box<dyn TokenLoop + 'a>> {
    let (model, options, resolved) = (plan.model, plan.cache_options, plan.resolved);
    let count = plan.prompts.len();
    let is_guided = plan.group.is_guided();
    let mut rows = plan.prompts;
    if is_guided {
        rows.extend(negatives(&rows, &plan.negative_prompts));
    }
    // All are padded to one length, as they would be side by side.
    let whole = LeftPadded::new(&rows, plan.pad)?;
    let prompts = whole.part(&(0..count).collect::<Vec<_>>());
    let hook = Arc::new(Mutex::new(plan.hook));
    let feed = move |part: &[usize]| {
        let mut rows = part.to_vec();
        if is_guided {
            rows.extend(part.iter().map(|it| count + it));
        }
        let (prompts, hook) = (whole.part(&rows), Arc::clone(&hook));
        let fed = Prefill::with_options(model.decoder(), &prompts, hook, &options)?;
        let mut fed = fed.reserve(reserved(&resolved, model)).chunk(chunk(&resolved));
        let ids: Vec<RowId> = rows.iter().map(|&it| RowId::new(it as u64)).collect();
        fed.set_row_ids(&ids)?;
        fed.finish()
    };
    Ok(Box::new(InParts::new(&prompts, plan.group.pad(plan.pad), most, feed)))
}

/// What each prompt is guided away from.
fn negatives(prompts: &[Vec<u32>], negative: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let without = |(row, prompt): (usize, &Vec<u32>)| match negative {
        // HF continues the prompt's last token alone.
        [] => prompt[prompt.len() - 1..].to_vec(),
        [one] => one.clone(),
        several => several[row].clone(),
    };
    prompts.iter().enumerate().map(without).collect()
}

/// The text that guidance moves away from beside guesses; it shares the prompt's hook.
fn guide<'a>(plan: &mut Plan<'a>) -> Result<Option<Guide<'a>>> {
    let Some(scale) = guidance_scale(&plan.resolved) else { return Ok(None) };
    let hook = Arc::new(Mutex::new(std::mem::replace(&mut plan.hook, Box::new(NoHook))));
    plan.hook = Box::new(Arc::clone(&hook));
    let negative = LeftPadded::new(&negatives(&plan.prompts, &plan.negative_prompts), plan.pad)?;
    let decoder = plan.model.decoder();
    let mut prefill = Prefill::with_options(decoder, &negative, hook, &plan.cache_options)?;
    prefill.name_rows(RowId::new(1), 1)?;
    Ok(Some(Guide::new(prefill.chunk(chunk(&plan.resolved)).finish()?, scale)))
}

fn begin<'a>(mut plan: Plan<'a>, answer: &mut Answer<'_>) -> Result<Box<dyn TokenLoop + 'a>> {
    if let Some(most) = plan.part {
        return in_parts(plan, most);
    }
    let (model, resolved) = (plan.model, plan.resolved.clone());
    // A draft model's heads may be of another size, which its cache's groups need not divide.
    let mut drafts_cache = plan.kept_as().clone();
    drafts_cache.quantization = None;
    let assistant = plan.assistant.take();
    let is_assisted = resolved.mode == GenerationMode::AssistedGeneration;
    let guide = if is_assisted { guide(&mut plan)? } else { None };
    // What heads read is what the model leaves of this text, with all that hooks make of it.
    let heads = plan.heads.map(|it| (it, FinalStates::default()));
    if let Some((_, states)) = &heads {
        let own = std::mem::replace(&mut plan.hook, Box::new(NoHook));
        plan.hook = Box::new((own, states.clone()));
    }
    let prompts = LeftPadded::new(&plan.prompts, plan.pad)?;
    let choose_on_device = plan.choose_on_device;
    let (mut prefill, copies, mut group) = fed(plan, RowId::new(0))?;
    answer.note_cached(prefill.cached());
    // Beams of a prompt share a name, and sequences have one each.
    let has_names = resolved.mode.streams();
    prefill.name_rows(RowId::new(0), if has_names { copies } else { 1 })?;
    let session = |prefill| session(prefill, copies, &resolved);
    Ok(match resolved.mode {
        GenerationMode::AssistedGeneration => {
            let prompt = &prompts.rows()[0];
            let chunk = chunk(&resolved);
            let generator: Box<dyn CandidateGenerator + 'a> = match heads {
                Some((heads, states)) => {
                    Box::new(MtpDraft::new(heads, states, prompt.len()).chunk(chunk))
                }
                None => generator(&resolved, model, assistant, prompt, &drafts_cache)?,
            };
            let weight = resolved.config.assistant_ensemble_weight;
            let it = AssistedLoop::new(session(prefill)?, generator, prompt, group);
            Box::new(it.ensemble_weight(weight).guide(guide))
        }
        GenerationMode::ContrastiveSearch => {
            let options = ContrastiveOptions {
                penalty_alpha: resolved.config.penalty_alpha.unwrap_or(0.0),
                top_k: resolved.config.top_k.unwrap_or(1),
            };
            let session = ContrastiveSession::prefill(prefill)?;
            Box::new(ContrastiveLoop::new(session, &prompts, group, options))
        }
        GenerationMode::BeamSearch | GenerationMode::BeamSample => {
            let options = beam_options(&resolved);
            Box::new(BeamSearch::new(session(prefill)?, &prompts, group, options)?)
        }
        GenerationMode::GroupBeamSearch | GenerationMode::ConstrainedBeamSearch => {
            let (variant, options) = (variant(&resolved, model)?, beam_options(&resolved));
            Box::new(HeapBeamSearch::new(session(prefill)?, &prompts, group, options, variant)?)
        }
        mode => {
            if mode == GenerationMode::DolaGeneration {
                prefill = prefill.dola(&dola_layers(&resolved))?;
                group = group.dola();
            }
            let (session, prompts) = (session(prefill)?, prompts.repeat(copies));
            match choose_on_device.then(|| DeviceChoice::of(&session, &group)).flatten() {
                Some(choice) => Box::new(AheadLoop::new(session, &prompts, group, choice)),
                None => Box::new(SampleLoop::new(session, &prompts, group)),
            }
        }
    })
}

/// The session that the prompts are fed to, each with as many rows as it is continued by.
fn session<'a>(
    prefill: Prefill<'a>,
    copies: usize,
    resolved: &Resolved,
) -> Result<DecoderSession<'a>> {
    let mut session = prefill.finish()?;
    session.repeat(copies)?;
    if resolved.mode.streams() {
        session.name_rows(RowId::new(0))?;
    }
    let is_cached = resolved.config.use_cache != Some(false);
    Ok(if is_cached { session } else { session.without_cache() })
}

fn dola_layers(resolved: &Resolved) -> DolaLayers {
    match &resolved.config.dola_layers {
        None | Some(fields::DolaLayers::Low) => DolaLayers::Low,
        Some(fields::DolaLayers::High) => DolaLayers::High,
        Some(fields::DolaLayers::Listed(layers)) => DolaLayers::Listed(layers.clone()),
    }
}

fn beam_options(resolved: &Resolved) -> BeamOptions {
    BeamOptions {
        num_beams: resolved.num_beams,
        num_return_sequences: resolved.num_return_sequences,
        length_penalty: resolved.config.length_penalty.unwrap_or(1.0),
        early_stopping: match resolved.config.early_stopping {
            None | Some(fields::EarlyStopping::Heuristic) => EarlyStopping::Heuristic,
            Some(fields::EarlyStopping::WhenFinished) => EarlyStopping::WhenFinished,
            Some(fields::EarlyStopping::Never) => EarlyStopping::Never,
        },
    }
}

fn variant(resolved: &Resolved, model: &Model) -> Result<Variant> {
    let config = &resolved.config;
    if resolved.mode == GenerationMode::GroupBeamSearch {
        return Ok(Variant::Groups {
            groups: config.num_beam_groups.unwrap_or(1),
            diversity_penalty: config.diversity_penalty.unwrap_or(0.0),
        });
    }
    let (vocab, eos) = (model.decoder().vocab_size(), &resolved.special_tokens.eos);
    let refuse = |what: String| {
        Err(Error::of_field("force_words_ids", format!("`force_words_ids` holds {what}")))
    };
    let token = |id: &fields::TokenId| match u32::try_from(*id) {
        Ok(token) if eos.contains(&token) => refuse(format!("{token}, which ends a sequence")),
        Ok(token) if (token as usize) < vocab => Ok(token),
        _ => refuse(format!("{id}, which is outside the vocabulary of {vocab}")),
    };
    let words = config.force_words_ids.as_deref().unwrap_or_default();
    let constraint = |word: &fields::ForcedWord| {
        let phrases = word.alternatives().iter().map(|it| it.iter().map(token).collect());
        Ok(Constraint::any_of(phrases.collect::<Result<_>>()?)?)
    };
    words.iter().map(constraint).collect::<Result<_>>().map(Variant::Words)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]
mod tests {
    use std::path::Path;

    use mlxgk_generation_config::GenerationConfig;
    use serde_json::json;

    use crate::{ComputeDtype, Model, Request};

    fn requests(fields: &serde_json::Value) -> Request<'static> {
        let prompt =
            |at: u32| (0..1 + at * 5 % 13).map(|it| 3 + (it * 37 + at * 11) % 120).collect();
        let prompts: Vec<Vec<u32>> = (0..11).map(prompt).collect();
        let config = GenerationConfig::from_json(fields).unwrap();
        let config = GenerationConfig { do_sample: Some(false), ..config };
        Request::batch(prompts).config(config)
    }

    /// What a request that runs in parts comes to is what it comes to at once, whatever else it asks for.
    #[test]
    fn parts_come_to_what_the_whole_comes_to() {
        for (name, fields) in [
            ("llama", json!({"max_new_tokens": 9, "eos_token_id": [5, 17]})),
            ("llama", json!({"max_length": 20, "repetition_penalty": 1.7, "pad_token_id": 90})),
            ("qwen3", json!({"max_new_tokens": 7, "guidance_scale": 1.5, "output_scores": true})),
            ("gemma3", json!({"max_new_tokens": 12, "no_repeat_ngram_size": 2})),
            ("llama", json!({"max_new_tokens": 5, "max_kv_size": 6, "prefill_chunk_size": 4})),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
            let model = Model::load(folder.join(name), ComputeDtype::Float32).unwrap();
            let tokens = |part: Option<usize>| {
                let mut plan = model.plan(requests(&fields)).unwrap();
                assert_eq!(plan.part, None);
                plan.part = part;
                let mut stream = plan.stream().unwrap();
                let mut pieces = vec![Vec::new(); 11];
                for piece in stream.by_ref() {
                    let piece = piece.unwrap();
                    pieces[piece.sequence].push(piece.token);
                }
                let sequences = stream.finish().unwrap().sequences;
                for (sequence, pieces) in sequences.iter().zip(&pieces) {
                    assert_eq!(&sequence.tokens, pieces, "{name} {fields}");
                }
                let it =
                    sequences.into_iter().map(|it| (it.prompt_index, it.tokens, it.finish_reason));
                it.collect::<Vec<_>>()
            };
            let whole = tokens(None);
            for part in [1, 3, 10] {
                assert_eq!(tokens(Some(part)), whole, "{name} {fields}, {part} at once");
            }
        }
    }
}
