//! Over every model of the fixtures and every kind of cache: a request in a batch is answered as it is
//! alone, whenever it joins, however its prompt is read, and whatever becomes of its neighbours. A test for
//! each model.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode};

use libtest_mimic::{Arguments, Trial};
use mlx_genkit::{
    Batch, BatchOutcome, ComputeDtype, GenerationConfig, HookPoint, Model, Request, Seed, Sequence,
    generation_config::{Kwargs, OneOrMany},
    logits_processors::{Context, LogitsProcessor},
    steering::{Injection, Operation, Steering, SteeringVectors},
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let entries = fs::read_dir(folder()).unwrap().map(|it| it.unwrap());
    let folders = entries.filter(|it| it.path().is_dir());
    let mut names: Vec<String> = folders.map(|it| it.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(WIDE.iter().all(|wide| names.iter().any(|it| it == wide)));
    let trial = |name: String| {
        Trial::test(name.clone(), move || {
            neighbours_do_not_show(&name);
            Ok(())
        })
    };
    let trials = names.into_iter().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The models whose heads are wide enough for a quantized cache.
const WIDE: [&str; 2] = ["gemma3-q4", "qwen3-q8"];

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models"))
}

fn neighbours_do_not_show(name: &str) {
    let model = Model::load(folder().join(name), ComputeDtype::Float32).unwrap();
    let mut caches = vec![json!({}), json!({"max_kv_size": 12, "kv_keep": 3})];
    if WIDE.contains(&name) {
        caches.push(json!({"kv_bits": 8, "kv_group_size": 32}));
        caches.push(json!({"kv_bits": 4, "kv_group_size": 32, "max_kv_size": 12, "kv_keep": 3}));
    }
    for cache in caches {
        let alone: Vec<Sequence> = (0..WATCHED.len())
            .map(|at| {
                let generation = model.generate(watched(&model, &cache, at, None)).unwrap();
                generation.sequences.into_iter().next().unwrap()
            })
            .collect();
        for (at, (found, alone)) in in_company(&model, &cache).iter().zip(&alone).enumerate() {
            let what = format!("{name}, {cache}, request {at}");
            assert_eq!(found.tokens, alone.tokens, "{what}");
            near(&found.recorded.scores.concat(), &alone.recorded.scores.concat(), &what);
        }
    }
}

/// Within 1e-5 of the largest score: a prompt that is read in other chunks is summed in another order, and
/// every layer passes on what that rounds.
#[track_caller]
fn near(found: &[f32], alone: &[f32], what: &str) {
    let finite = alone.iter().filter(|it| it.is_finite());
    let largest = finite.fold(1.0_f32, |largest, it| largest.max(it.abs()));
    let apart = |(a, b): (&f32, &f32)| if a == b { 0.0 } else { (a - b).abs() };
    let worst = found.iter().zip(alone).map(apart).fold(0.0, f32::max);
    assert_eq!(found.len(), alone.len(), "{what}");
    assert!(worst <= 1e-5 * largest, "{what}: {worst} of {largest}");
}

/// The requests that are looked at: how long the prompt is, in what chunks it is read in company, whether
/// tokens are drawn, and whether the row is steered.
const WATCHED: [(u32, usize, bool, bool); 3] =
    [(17, 3, false, true), (7, 1, true, false), (23, 16, false, false)];

fn watched<'a>(model: &Model, cache: &Value, at: usize, chunk: Option<usize>) -> Request<'a> {
    let (len, _, draw, steered) = WATCHED[at];
    let fields = json!({
        "output_scores": true, "repetition_penalty": 1.2, "top_k": 0, "temperature": 1.0,
        "do_sample": draw, "prefill_chunk_size": chunk,
    });
    let request = request(cache, len, 10, at as u32).overrides(kwargs(cache, &fields));
    let request = request.seed(Seed::Fast(at as u64));
    if steered { request.steering(steering(model, Operation::Add, 1)) } else { request }
}

fn request<'a>(cache: &Value, len: u32, count: usize, salt: u32) -> Request<'a> {
    let prompt: Vec<u32> =
        (0..len).map(|it| (it * it * 7 + it * 37 + salt * 53) % 60 + 3).collect();
    let config = GenerationConfig {
        max_new_tokens: Some(count),
        do_sample: Some(false),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    };
    Request::new(prompt).config(config).overrides(kwargs(cache, &json!({})))
}

fn kwargs(cache: &Value, fields: &Value) -> Kwargs {
    let mut all = fields.as_object().unwrap().clone();
    all.retain(|_, it| !it.is_null());
    all.extend(cache.as_object().unwrap().clone());
    Kwargs::from_json(&all.into()).unwrap()
}

fn steering(model: &Model, operation: Operation, seed: u64) -> Steering {
    let width = model.decoder().hidden_size();
    let one = vec![2.0 / (width as f32).sqrt(); width];
    let places = [HookPoint::ResidPost(0), HookPoint::ResidPost(1)];
    let ones = SteeringVectors::new(places.map(|it| (it, one.clone()))).unwrap();
    Injection::new(ones.random_like(seed).unwrap(), 1.0).operation(operation).into()
}

/// Leaves a row no token at its fourth step.
#[derive(Debug)]
struct DeadEnd;

impl LogitsProcessor for DeadEnd {
    fn name(&self) -> &'static str {
        "DeadEnd"
    }

    fn process(
        &self,
        context: &Context<'_>,
        scores: &mut [f32],
    ) -> Result<(), mlx_genkit::logits_processors::Error> {
        if context.generated().len() == 3 {
            scores.fill(f32::NEG_INFINITY);
        }
        Ok(())
    }
}

/// What the requests are answered that join one after the other, among neighbours that are steered, fail,
/// leave before their end or come late.
fn in_company(model: &Model, cache: &Value) -> Vec<Sequence> {
    let mut batch = Batch::new(model);
    let (mut watched_ids, mut failing, mut failed) = (Vec::new(), None, None);
    let mut finished = BTreeMap::new();
    for step in 0.. {
        match step {
            // The longest row leaves later, and with it the padding that the others had.
            0 => assert_eq!(batch.join(request(cache, 70, 50, 11)).unwrap(), 0),
            1 => {
                let clamped = steering(model, Operation::Clamp, 2);
                batch.join(request(cache, 9, 30, 12).steering(clamped)).unwrap();
            }
            2 => {
                let processors: Vec<Box<dyn LogitsProcessor>> = vec![Box::new(DeadEnd)];
                let request = request(cache, 5, 9, 13).processors(processors);
                failing = Some(batch.join(request).unwrap());
            }
            3..=5 => {
                let at = watched_ids.len();
                let request = watched(model, cache, at, Some(WATCHED[at].1));
                watched_ids.push(batch.join(request).unwrap());
            }
            7 => _ = batch.join(request(cache, 1, 3, 14)).unwrap(),
            15 => assert!(batch.leave(0)),
            _ => {}
        }
        if batch.is_empty() {
            break;
        }
        for event in batch.step().unwrap() {
            match event.outcome {
                BatchOutcome::Failed { error, .. } => failed = Some((event.id, error.to_string())),
                BatchOutcome::Finished(it) => _ = finished.insert(event.id, *it),
                _ => {}
            }
        }
    }
    let (id, error) = failed.unwrap();
    assert_eq!(Some(id), failing);
    assert!(error.ends_with("every token is banned: `DeadEnd` leaves none"), "{error}");
    let answer = |id| finished.remove(id).unwrap().sequences.into_iter().next().unwrap();
    watched_ids.iter().map(answer).collect()
}
