//! Steering through `generate()`: whichever way tokens are fed, the same tokens come out.

#![cfg(all(feature = "bundled", feature = "grammars"))]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use mlx_genkit::{
    Batch, BatchOutcome, ComputeDtype, ErrorKind, GenerationConfig, HookPoint, Model, NoHook,
    Prompt, Request, ResidualHook, Seed, Sequence,
    generation_config::{Kwargs, OneOrMany},
    kv_cache::KvCache,
    logits_processors::log_softmax,
    mlx_rs::{Array, ops::indexing::TryIndexOp},
    steering::{Injection, Operation, Steering, SteeringHook, SteeringVectors},
};

use serde_json::json;

const SCHEDULES: [&str; 7] = [
    "constant",
    "warmup:4",
    "ramp:1:6",
    "cosine:8",
    "decay:3",
    "pulse:3:0.5",
    "points:0=0.5,4=1,8=-1",
];
const POSITIONS: [&str; 7] = [
    "all",
    "prompt",
    "generation",
    "prompt[1..-1],generation[2..7]",
    "tokens[7;40;52]",
    "all,-tokens[7;9],-prompt[0..1]",
    "generation,-generation[3..5]",
];
const PROMPT: [u32; 8] = [5, 9, 40, 7, 7, 61, 7, 9];
const NEW: usize = 10;

fn tiny(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Model::load(folder, ComputeDtype::Float32).unwrap()
}

/// Vectors after the first two blocks, of length `norm`.
fn vectors(model: &Model, norm: f32) -> SteeringVectors {
    let width = model.decoder().hidden_size();
    let one = vec![norm / (width as f32).sqrt(); width];
    let places = [HookPoint::ResidPost(0), HookPoint::ResidPost(1)];
    let ones = SteeringVectors::new(places.map(|it| (it, one.clone()))).unwrap();
    ones.random_like(4).unwrap()
}

fn injection(model: &Model, operation: Operation) -> Injection {
    Injection::new(vectors(model, 6.0), 1.0).operation(operation)
}

fn hook(model: &Model, steering: &Steering) -> SteeringHook {
    steering.hook(model.decoder()).unwrap()
}

fn config() -> GenerationConfig {
    GenerationConfig {
        do_sample: Some(false),
        max_new_tokens: Some(NEW),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        pad_token_id: Some(0),
        ..GenerationConfig::default()
    }
}

fn run(model: &Model, hook: &mut dyn ResidualHook, config: GenerationConfig) -> Vec<u32> {
    let request = Request::new(PROMPT.to_vec()).config(config).hook(hook).seed(Seed::Fast(1));
    model.generate(request).unwrap().sequences.swap_remove(0).tokens
}

/// What a steering leads to in every way there is to run a request for one sequence.
fn ways(model: &Model, steering: &Steering) -> BTreeMap<&'static str, Vec<u32>> {
    let hook = &mut hook(model, steering);
    let mut said = BTreeMap::new();
    for (way, config) in [
        ("plain", config()),
        ("chunked", GenerationConfig { prefill_chunk_size: Some(3), ..config() }),
        ("one beam", GenerationConfig { num_beams: Some(1), ..config() }),
        ("lookup", GenerationConfig { prompt_lookup_num_tokens: Some(4), ..config() }),
    ] {
        said.insert(way, run(model, hook, config));
    }
    let assisted = Request::new(PROMPT.to_vec()).config(config()).hook(&mut *hook).assistant(model);
    said.insert("draft", model.generate(assisted).unwrap().sequences[0].tokens.clone());

    let others = [(1..14).collect::<Vec<u32>>(), PROMPT.to_vec(), vec![30, 2, 7]];
    let prompts = others.iter().map(|it| Prompt::from(it.clone()));
    let together = Request::batch(prompts).config(config()).hook(&mut *hook);
    said.insert("padded", model.generate(together).unwrap().sequences[1].tokens.clone());

    let cache = model.decoder().new_cache(1);
    let (_, cache) = go_on(model, hook, cache);
    let (forked, _) = go_on(model, hook, cache.fork());
    said.insert("forked", forked);
    said.insert("the fork's origin", go_on(model, hook, cache).0);

    let (mut batch, steering) = (Batch::new(model), Arc::new(steering.clone()));
    let mut waiting = others.iter();
    let mut tokens: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for step in 0.. {
        // One joins every other step.
        if step % 2 == 0
            && let Some(prompt) = waiting.next()
        {
            let request = Request::new(prompt.clone()).config(config());
            batch.join(request.steering(Arc::clone(&steering))).unwrap();
        }
        if batch.is_empty() {
            break;
        }
        for event in batch.step().unwrap() {
            match event.outcome {
                BatchOutcome::Piece(it) => tokens.entry(event.id).or_default().push(it.token),
                BatchOutcome::Finished(it) => {
                    assert_eq!(it.sequences[0].tokens, tokens[&event.id]);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    said.insert("continuous", tokens.remove(&1).unwrap());
    said
}

/// A request with a cache; gives it back.
fn go_on(model: &Model, hook: &mut SteeringHook, cache: KvCache) -> (Vec<u32>, KvCache) {
    let request = Request::new(PROMPT.to_vec()).config(config()).cache(cache).hook(hook);
    let mut stream = model.stream(request).unwrap();
    stream.by_ref().for_each(|it| drop(it.unwrap()));
    let (mut generation, cache) = stream.finish_with_cache().unwrap();
    (generation.sequences.swap_remove(0).tokens, cache)
}

#[track_caller]
fn all_the_same(model: &Model, steering: &Steering, label: &str) {
    let said = ways(model, steering);
    for (way, tokens) in &said {
        assert_eq!(tokens, &said["plain"], "{}: {way} differs under {label}", model.name());
    }
}

#[test]
fn every_way_to_feed_gives_the_same_tokens_under_every_schedule() {
    let model = tiny("llama");
    let bare = run(&model, &mut NoHook, config());
    let mut moved = 0;
    for (row, schedule) in SCHEDULES.iter().enumerate() {
        for (column, positions) in POSITIONS.iter().enumerate() {
            // Half of the pairs will do; each schedule and each kind of position is among them.
            if (row + column) % 2 == 1 {
                continue;
            }
            let operation = [Operation::Add, Operation::Clamp, Operation::NormPreserve];
            let operation = operation[(row + column) / 2 % 3];
            let injection = injection(&model, operation)
                .schedule(schedule.parse().unwrap())
                .positions(positions.parse().unwrap());
            let steering = Steering::from(injection);
            all_the_same(&model, &steering, &format!("{operation} {schedule} {positions}"));
            moved += usize::from(run(&model, &mut hook(&model, &steering), config()) != bare);
        }
    }
    assert!(moved > 18, "steering that changes nothing tests nothing: {moved} of 25");
}

#[test]
fn every_family_agrees() {
    for name in ["mistral", "gemma2", "gemma3-q4", "qwen3-q8", "qwen3-moe", "qwen2-mixed"] {
        let model = tiny(name);
        for (schedule, positions) in SCHEDULES.into_iter().zip(POSITIONS) {
            let injection = injection(&model, Operation::AddRelative)
                .schedule(schedule.parse().unwrap())
                .positions(positions.parse().unwrap());
            all_the_same(&model, &injection.into(), &format!("{schedule} {positions}"));
        }
    }
}

/// log p of the new tokens, from one pass over the whole text.
fn log_prob(model: &Model, hook: &mut SteeringHook, prompt: &[u32], new: &[u32]) -> f32 {
    let text = [prompt, new].concat();
    let mut cache = model.decoder().new_cache(1);
    cache.set_prompt_end(prompt.len());
    let logits = model.decoder().forward(&[&text], &mut cache, hook).unwrap();
    let row = |at: usize| {
        let row: Array = logits.try_index((0, at as i32, ..)).unwrap();
        let mut row: Vec<f32> = row.to_vec_exact().unwrap();
        log_softmax(&mut row).unwrap();
        row
    };
    new.iter().enumerate().map(|(at, &it)| row(prompt.len() - 1 + at)[it as usize]).sum()
}

/// Three beams for each prompt, after a check that a prompt's are the same without the others.
fn alone_as_together(
    model: &Model,
    hook: &mut SteeringHook,
    prompts: &[Vec<u32>],
    label: &str,
) -> Vec<Sequence> {
    let config = GenerationConfig {
        num_beams: Some(3),
        num_return_sequences: Some(3),
        length_penalty: Some(0.0),
        ..config()
    };
    let mut search = |prompts: &[Vec<u32>]| -> Vec<Sequence> {
        let prompts = prompts.iter().map(|it| Prompt::from(it.clone()));
        let request = Request::batch(prompts).config(config.clone()).hook(&mut *hook);
        model.generate(request).unwrap().sequences
    };
    let together = search(prompts);
    for (prompt, together) in prompts.iter().zip(together.chunks(3)) {
        let alone = search(std::slice::from_ref(prompt));
        for (alone, together) in alone.iter().zip(together) {
            assert_eq!(alone.tokens, together.tokens, "{label}");
        }
    }
    together
}

#[test]
fn beams_are_steered_as_single_texts_are() {
    let prompts = [PROMPT.to_vec(), (1..14).collect(), vec![30, 2, 7]];
    for name in ["llama", "gemma2"] {
        let model = tiny(name);
        for (schedule, positions) in SCHEDULES.into_iter().zip(POSITIONS) {
            let injection = injection(&model, Operation::Add)
                .schedule(schedule.parse().unwrap())
                .positions(positions.parse().unwrap());
            let steering = Steering::from(injection);
            let label = format!("{name} {schedule} {positions}");
            let bounded = steering.clone().budget(0.02);
            alone_as_together(&model, &mut hook(&model, &bounded), &prompts, &label);
            let mut hook = hook(&model, &steering);
            for sequence in alone_as_together(&model, &mut hook, &prompts, &label) {
                let prompt = &prompts[sequence.prompt_index];
                let expected = log_prob(&model, &mut hook, prompt, &sequence.tokens);
                let error = (sequence.score.unwrap() - expected).abs();
                assert!(error < 1e-3, "{label}: {error}");
            }
        }
    }
}

/// Phi-3 reads its text again when it grows past the original context.
#[test]
fn a_text_that_is_read_anew_is_steered_as_before() {
    let model = tiny("phi3-longrope");
    let limit = model.decoder().original_context().unwrap();
    let prompt: Vec<u32> = (0..limit as u32 - 4).map(|it| it * 37 % 90 + 3).collect();
    let injection = injection(&model, Operation::AddRelative)
        .schedule("points:0=1,3=0.2,8=1".parse().unwrap())
        .positions("generation".parse().unwrap());
    for steering in [Steering::from(injection.clone()), Steering::from(injection).budget(0.01)] {
        let mut hook = hook(&model, &steering);
        let mut run = |config| {
            let request = Request::new(prompt.clone()).config(config).hook(&mut hook);
            model.generate(request).unwrap().sequences.swap_remove(0).tokens
        };
        let plain = run(config());
        let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(3), ..config() };
        assert_eq!(run(lookup), plain);
    }
}

/// KL(steered ‖ base) of each choice, both from the cache of a run under the budget.
fn spent(model: &Model, hook: &mut SteeringHook) -> Vec<f64> {
    let mut spent = Vec::new();
    for count in 1..=NEW {
        let one_more =
            GenerationConfig { max_new_tokens: Some(count), output_logits: Some(true), ..config() };
        let request = Request::new(PROMPT.to_vec())
            .config(one_more)
            .cache(model.decoder().new_cache(1))
            .hook(&mut *hook);
        let mut stream = model.stream(request).unwrap();
        stream.by_ref().for_each(|it| drop(it.unwrap()));
        let (generation, mut cache) = stream.finish_with_cache().unwrap();
        let mut steered = generation.sequences[0].recorded.logits[count - 1].clone();
        // The last token was not fed; the one before it was steered, and is fed again without.
        let fed = cache.tokens(0).to_vec();
        let columns = if count == 1 { PROMPT.len() } else { 1 };
        cache.trim(columns).unwrap();
        cache.allow_other_steering();
        let rest = &fed[fed.len() - columns..];
        let base = model.decoder().forward(&[rest], &mut cache, &mut NoHook).unwrap();
        let base: Array = base.try_index((0, columns as i32 - 1, ..)).unwrap();
        let mut base: Vec<f32> = base.to_vec_exact().unwrap();
        log_softmax(&mut base).unwrap();
        log_softmax(&mut steered).unwrap();
        let term = |(q, p): (&f32, &f32)| f64::from(q.exp()) * f64::from(q - p);
        spent.push(steered.iter().zip(&base).map(term).sum());
    }
    spent
}

#[test]
fn a_budget_bounds_every_choice() {
    for name in ["llama", "gemma2"] {
        let model = tiny(name);
        for (schedule, positions) in [
            ("constant", "all"),
            ("warmup:4", "generation"),
            ("pulse:3:0.5", "prompt,tokens[7;40]"),
        ] {
            for operation in [Operation::Add, Operation::Rotate, Operation::Clamp] {
                let of = |budget: Option<f64>| {
                    let injection = injection(&model, operation)
                        .schedule(schedule.parse().unwrap())
                        .positions(positions.parse().unwrap());
                    let steering = Steering::from(injection);
                    hook(&model, &budget.map_or(steering.clone(), |it| steering.budget(it)))
                };
                let label = format!("{name} {operation} {schedule} {positions}");
                let free = run(&model, &mut of(None), config());
                assert_eq!(run(&model, &mut of(Some(1e6)), config()), free, "{label}");
                let bare = run(&model, &mut NoHook, config());
                assert_eq!(run(&model, &mut of(Some(1e-12)), config()), bare, "{label}");
                let unbounded = spent(&model, &mut of(Some(1e6)));
                let (budget, mut used) = (0.02, 0);
                for (bounded, free) in spent(&model, &mut of(Some(budget))).iter().zip(unbounded) {
                    assert!(*bounded <= budget + 1e-5, "{label}: {bounded}");
                    // A step that would go beyond takes most of what it may.
                    used += usize::from(*bounded > budget / 2.0 && free > budget);
                }
                assert!(used > 0 || positions != "all", "{label}: the budget was never used");
            }
        }
    }
}

#[test]
fn a_budget_means_the_same_however_tokens_are_fed() {
    for name in ["llama", "gemma2"] {
        let model = tiny(name);
        for (schedule, positions) in SCHEDULES.into_iter().zip(POSITIONS) {
            let injection = injection(&model, Operation::Add)
                .schedule(schedule.parse().unwrap())
                .positions(positions.parse().unwrap());
            let steering = Steering::from(injection).budget(0.02);
            all_the_same(&model, &steering, &format!("{schedule} {positions}, within a budget"));
        }
    }
}

/// A request that continues [`PROMPT`].
fn ask<'a>(cache: KvCache) -> Request<'a> {
    Request::new([&PROMPT[..], &[3, 4]].concat()).config(config()).cache(cache)
}

#[test]
fn a_cache_is_not_gone_on_with_under_another_steering() {
    let model = tiny("llama");
    let of = |alpha| Steering::from(Injection::new(vectors(&model, 6.0), alpha));
    let (_, cache) = go_on(&model, &mut hook(&model, &of(1.0)), model.decoder().new_cache(1));
    assert!(cache.steering(0).unwrap().starts_with("add 1 at resid_post.0 to resid_post.1"));

    let error = model.generate(ask(cache.fork())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request);
    let error = error.to_string();
    assert!(error.contains("filled under the steering `add 1 at"), "{error}");
    assert!(error.contains("without steering"), "{error}");
    let mut other = hook(&model, &of(2.0));
    let error = model.generate(ask(cache.fork()).hook(&mut other)).unwrap_err().to_string();
    assert!(error.contains("`add 1 at") && error.contains("`add 2 at"), "{error}");
    let (_, bare) = {
        let mut stream = model.stream(ask(model.decoder().new_cache(1))).unwrap();
        stream.by_ref().for_each(|it| drop(it.unwrap()));
        stream.finish_with_cache().unwrap()
    };
    let error = model.generate(ask(bare).hook(&mut other)).unwrap_err().to_string();
    assert!(error.contains("filled without steering"), "{error}");

    // A pass of one's own is refused as well, and leaves the cache as it was.
    let mut fork = cache.fork();
    let error = model.decoder().forward(&[&[3]], &mut fork, &mut NoHook).unwrap_err();
    assert!(error.to_string().contains("without steering"), "{error}");
    assert_eq!((fork.len(), fork.steering(0)), (cache.len(), cache.steering(0)));

    // Alpha 0 does not steer, an equal steering is the same one, and mixing can be asked for.
    let same = model.generate(ask(cache.fork()).hook(&mut hook(&model, &of(1.0))));
    assert_eq!(same.unwrap().sequences[0].tokens.len(), NEW);
    let mut mixed = cache.fork();
    mixed.allow_other_steering();
    let mixed = model.generate(ask(mixed).hook(&mut hook(&model, &of(0.0)))).unwrap();
    assert_eq!(mixed.sequences[0].tokens.len(), NEW);
    let mut empty = cache;
    empty.clear();
    assert_eq!(empty.steering(0), None);
    model.generate(ask(empty)).unwrap();
}

/// What the bundled model holds of a cheerful text, less what it holds of a gloomy one.
fn joy(model: &Model) -> SteeringVectors {
    let mean = |text: &str| -> Vec<f32> {
        let ids = Prompt::from(text).ids(model).unwrap();
        let (_, hidden) = model.decoder().forward_with_hidden(&[&ids], &[2]).unwrap();
        hidden[0].mean_axes(&[0, 1], false).unwrap().to_vec_exact().unwrap()
    };
    let (glad, sad) = (mean("Oh, it is such fun, wonderful!"), mean("Alas, I sigh, it is lonely."));
    let difference = glad.iter().zip(&sad).map(|(a, b)| a - b).collect();
    SteeringVectors::new([(HookPoint::ResidPost(2), difference)]).unwrap()
}

fn ask_bundled<'a>(config: GenerationConfig) -> Request<'a> {
    let config = GenerationConfig { do_sample: Some(false), ..config };
    let prompts = ["How is the harbour?", "Tell me about the rain of today, please."];
    Request::batch(prompts.map(Prompt::from)).config(config).seed(Seed::Fast(3))
}

/// Every kind of request, each without and with steering: what is asked for holds in both, and the
/// steering shows.
#[test]
fn steering_goes_with_everything_else_in_one_call() {
    let model = Model::bundled(ComputeDtype::Float32).unwrap();
    let steering = Steering::from(
        Injection::new(joy(&model), 1.5)
            .positions("generation".parse().unwrap())
            .schedule("warmup:2".parse().unwrap()),
    );
    let base = GenerationConfig { max_new_tokens: Some(24), ..GenerationConfig::default() };
    let stop = GenerationConfig {
        stop_strings: Some(OneOrMany::Many(vec![".".to_owned(), "!".to_owned()])),
        ..base.clone()
    };
    let banned = Prompt::from("Hello wonderful fun").ids(&model).unwrap();
    let without = GenerationConfig {
        suppress_tokens: Some(banned.iter().map(|&it| it.into()).collect()),
        no_repeat_ngram_size: Some(2),
        ..base.clone()
    };
    let mut requests = vec![
        ("stop strings", stop),
        ("banned tokens", without.clone()),
        ("beams", GenerationConfig { num_beams: Some(3), ..without.clone() }),
        ("guidance", GenerationConfig { guidance_scale: Some(1.3), ..without.clone() }),
        ("samples", GenerationConfig { num_return_sequences: Some(3), ..without }),
    ];
    if cfg!(feature = "grammars") {
        let regex = Some("(It|I|The)[a-z ]{8,24}[.!]".to_owned());
        let plain = GenerationConfig { regex, max_new_tokens: Some(40), ..base };
        requests.push(("a grammar", plain.clone()));
        requests.push(("a grammar and beams", GenerationConfig { num_beams: Some(2), ..plain }));
    }
    for (what, config) in requests {
        let drawn = what == "samples";
        let run = |hook: Option<&mut SteeringHook>| {
            let mut request = ask_bundled(config.clone());
            if drawn {
                let config = GenerationConfig { do_sample: Some(true), ..config.clone() };
                request = request.config(config);
            }
            model.generate(hook.into_iter().fold(request, |it, hook| it.hook(hook))).unwrap()
        };
        let mut steered = hook(&model, &steering);
        let (plain, steered) = (run(None).sequences, run(Some(&mut steered)).sequences);
        assert_ne!(plain, steered, "{what}: the steering does not show");
        assert_eq!(steered.len(), if drawn { 6 } else { 2 });
        for sequence in plain.iter().chain(&steered) {
            let (text, tokens) = (&sequence.text, &sequence.tokens);
            match what {
                "stop strings" => {
                    assert_eq!(text.matches(['.', '!']).count(), 1, "{text}");
                    assert!(text.ends_with(['.', '!']), "{text}");
                }
                "a grammar" | "a grammar and beams" => {
                    let inner = text.strip_suffix(['.', '!']).unwrap();
                    assert!(["It", "I", "The"].iter().any(|it| inner.starts_with(it)), "{text}");
                    let small =
                        inner.chars().skip(1).all(|it| it == ' ' || it.is_ascii_lowercase());
                    assert!(small, "{text}");
                }
                _ => assert!(!tokens.iter().any(|it| banned.contains(it)), "{what}: {text}"),
            }
        }
    }
}

#[test]
fn rows_under_guidance_and_steering_do_not_know_of_each_other() {
    let model = tiny("llama");
    let injection = injection(&model, Operation::Add)
        .schedule("ramp:0:4".parse().unwrap())
        .positions("prompt[1..],generation".parse().unwrap());
    let mut hook = hook(&model, &injection.into());
    let config = GenerationConfig { guidance_scale: Some(1.4), ..config() };
    let prompts = [PROMPT.to_vec(), (1..14).collect(), vec![30, 2, 7]];
    let mut run = |prompts: &[Vec<u32>]| -> Vec<Vec<u32>> {
        let prompts = prompts.iter().map(|it| Prompt::from(it.clone()));
        let request = Request::batch(prompts).config(config.clone()).hook(&mut hook);
        model.generate(request).unwrap().sequences.into_iter().map(|it| it.tokens).collect()
    };
    let together = run(&prompts);
    for (prompt, together) in prompts.into_iter().zip(together) {
        assert_eq!(run(&[prompt])[0], together);
    }
}

#[test]
fn what_steering_does_not_go_with_is_refused_in_a_sentence() {
    let model = tiny("llama");
    let steering = Steering::from(injection(&model, Operation::Add)).budget(0.1);
    let mut bounded = hook(&model, &steering);
    let guided = GenerationConfig { guidance_scale: Some(2.0), ..config() };
    let request = Request::new(PROMPT.to_vec()).config(guided).hook(&mut bounded);
    let error = model.generate(request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request);
    assert!(
        error.to_string().contains("a KL budget is not available together with `guidance_scale`"),
        "{error}"
    );

    for (fields, strategy) in [
        (json!({"penalty_alpha": 0.6, "top_k": 4}), "contrastive search"),
        (json!({"dola_layers": "low"}), "DoLa"),
    ] {
        let kwargs = Kwargs::from_json(&fields).unwrap();
        let request = Request::new(PROMPT.to_vec()).config(config()).overrides(kwargs);
        let error = model.generate(request.hook(&mut bounded)).unwrap_err().to_string();
        assert!(error.contains("KL budget") && error.contains(strategy), "{error}");
    }

    let error = model.score(Request::new(PROMPT.to_vec()).hook(&mut bounded)).unwrap_err();
    assert!(error.to_string().contains("a given text is scored without one"), "{error}");

    // A pass of one's own that does not set strengths would not keep to the budget.
    let mut cache = model.decoder().new_cache(1);
    let error = model.decoder().forward(&[&PROMPT], &mut cache, &mut bounded).unwrap_err();
    assert!(
        error.to_string().contains("a KL budget is enforced by the generation loops"),
        "{error}"
    );

    for budget in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = steering.clone().budget(budget).hook(model.decoder()).unwrap_err();
        assert!(error.to_string().contains("must be a finite number above 0"), "{error}");
    }
}
