//! Rows under steerings of their own in one batch: each gives the tokens and scores of the row alone.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use mlxgk_decoding_strategies::{DecoderSession, LanguageModel, LeftPadded, Reorder};
use mlxgk_kv_cache::RowId;
use mlxgk_logits_processors::log_softmax;
use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook, ResidualHook, RowHooks, SharedHook};
use mlxgk_steering::{
    HookPoint, Injection, Operation, Steering, SteeringHook, SteeringVectors, derive_seed,
};

const NEW: usize = 10;

fn model(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Decoder::load(&folder, ComputeDtype::Float32).unwrap()
}

/// Random vectors of length `norm` at the given places.
fn vectors(model: &Decoder, seed: u64, norm: f32, places: &[HookPoint]) -> SteeringVectors {
    let width = model.hidden_size();
    let one = vec![norm / (width as f32).sqrt(); width];
    let all = places.iter().map(|&it| (it, one.clone()));
    SteeringVectors::new(all).unwrap().random_like(seed).unwrap()
}

/// A steering of every kind there is: none, additions, what only the hook can do, budgets.
fn steerings(model: &Decoder) -> Vec<Option<Steering>> {
    use HookPoint::{FinalNorm, ResidMid, ResidPost};
    let blocks = [ResidPost(0), ResidPost(1)];
    let of = |seed, norm, places: &[HookPoint], operation, schedule: &str, positions: &str| {
        Injection::new(vectors(model, seed, norm, places), 1.0)
            .operation(operation)
            .schedule(schedule.parse().unwrap())
            .positions(positions.parse().unwrap())
    };
    use Operation::{Add, AddUnit, Clamp, NormPreserve, Replace, Rotate};
    vec![
        None,
        Some(of(1, 6.0, &blocks, Add, "constant", "all").into()),
        Some(of(2, 6.0, &blocks, Add, "warmup:4", "generation").into()),
        Some(of(3, 4.0, &[FinalNorm], Add, "constant", "all").into()),
        Some(Steering::from(of(4, 1.0, &[ResidPost(1)], AddUnit, "decay:3", "all")).with(of(
            5,
            5.0,
            &[ResidPost(1), ResidMid(0)],
            Add,
            "pulse:3:0.5",
            "prompt[1..]",
        ))),
        Some(of(6, 5.0, &blocks, Clamp, "constant", "generation").into()),
        Some(of(7, 5.0, &blocks, NormPreserve, "cosine:8", "all,-prompt[0..1]").into()),
        Some(of(8, 5.0, &blocks, Add, "constant", "tokens[7;40;52]").into()),
        Some(Steering::from(of(9, 6.0, &blocks, Add, "constant", "all")).budget(0.02)),
        Some(Steering::from(of(10, 6.0, &blocks, Rotate, "constant", "generation")).budget(0.05)),
        Some(of(11, 3.0, &[FinalNorm], Replace, "ramp:2:8", "generation").into()),
    ]
}

/// What a row gives: its new tokens, and the log-probabilities that each was chosen from.
#[derive(Debug, Clone, Default)]
struct Row {
    tokens: Vec<u32>,
    scores: Vec<f32>,
}

impl Row {
    fn choose(&mut self, logits: &[f32]) -> u32 {
        let mut row = logits.to_vec();
        log_softmax(&mut row).unwrap();
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
        self.tokens.push(best.unwrap() as u32);
        self.scores.extend(row);
        best.unwrap() as u32
    }

    #[track_caller]
    fn assert_is(&self, expected: &Self, label: &str) {
        assert_eq!(self.tokens, expected.tokens, "{label}");
        let pairs = self.scores.iter().zip(&expected.scores);
        let worst = pairs.map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{label}: scores differ by {worst}");
    }
}

fn alone(model: &Decoder, hook: Option<&SteeringHook>, prompt: &[u32]) -> Row {
    let hook: Box<dyn ResidualHook> = match hook {
        Some(hook) => Box::new(hook.clone()),
        None => Box::new(NoHook),
    };
    let prompts = LeftPadded::new(&[prompt.to_vec()], 0).unwrap();
    let mut session = DecoderSession::prefill(model, &prompts, 2048, hook).unwrap();
    let mut row = Row::default();
    for _ in 0..NEW {
        let token = row.choose(session.scores().unwrap());
        session.feed(&[token]).unwrap();
    }
    row
}

/// A random number below `below`.
fn draw(seed: u64, index: u64, below: usize) -> usize {
    (derive_seed(seed, index) % below as u64) as usize
}

fn prompt(seed: u64) -> Vec<u32> {
    let len = 2 + draw(seed, 0, 9) as u64;
    (1..=len).map(|it| [5, 9, 40, 7, 61, 30, 2, 52][draw(seed, it, 8)]).collect()
}

/// Random rows with random steerings, fed in random chunks, that change places, are doubled as beams
/// are, and leave at random.
#[test]
fn every_row_is_as_it_would_be_alone() {
    for (name, rounds) in [("llama", 5), ("gemma2", 3), ("qwen3-q8", 2)] {
        let model = model(name);
        let steerings = steerings(&model);
        let hooks: Vec<Option<SteeringHook>> =
            steerings.iter().map(|it| Some(it.as_ref()?.hook(&model).unwrap())).collect();
        for round in 0..rounds {
            let count = 2 + draw(round, 0, 7);
            // In the first round every kind is there.
            let kinds: Vec<usize> = match round {
                0 => (0..hooks.len()).collect(),
                _ => (0..count as u64).map(|it| draw(round, 10 + it, hooks.len())).collect(),
            };
            let prompts: Vec<Vec<u32>> =
                (0..kinds.len() as u64).map(|it| prompt(derive_seed(round, 100 + it))).collect();
            let expected: Vec<Row> = kinds
                .iter()
                .zip(&prompts)
                .map(|(&kind, prompt)| alone(&model, hooks[kind].as_ref(), prompt))
                .collect();

            // Some rows under one steering share its hook, others have one each.
            let shared: Vec<Option<SharedHook<'_>>> = hooks
                .iter()
                .map(|it| Some(Arc::new(Mutex::new(it.clone()?)) as SharedHook<'_>))
                .collect();
            let mut row_hooks = RowHooks::default();
            for (row, &kind) in (0..).zip(&kinds) {
                let Some(hook) = &hooks[kind] else { continue };
                let hook: SharedHook<'_> = match row % 2 {
                    0 => Arc::clone(shared[kind].as_ref().unwrap()),
                    _ => Arc::new(Mutex::new(hook.clone())),
                };
                row_hooks.insert(RowId::new(row), hook);
            }
            let chunk = [2048, 3, 1][draw(round, 1, 3)];
            let padded = LeftPadded::new(&prompts, 0).unwrap();
            let mut session = DecoderSession::prefill(&model, &padded, chunk, row_hooks).unwrap();
            let mut rows: Vec<(usize, Row)> =
                (0..kinds.len()).map(|it| (it, Row::default())).collect();
            let vocab = model.vocab_size();
            for step in 0..NEW as u64 {
                let scores = session.scores().unwrap().to_vec();
                let scores = scores.chunks_exact(vocab);
                let next: Vec<u32> =
                    rows.iter_mut().zip(scores).map(|(it, row)| it.1.choose(row)).collect();
                // Change places, repeat one, drop one.
                let mut order: Vec<usize> = (0..rows.len()).collect();
                match draw(derive_seed(round, step), 2, 5) {
                    0 => order.rotate_left(1),
                    1 => order.push(0),
                    2 if order.len() > 2 => drop(order.pop()),
                    3 => order.reverse(),
                    _ => {}
                }
                session.reorder(&order).unwrap();
                let fed: Vec<u32> = order.iter().map(|&it| next[it]).collect();
                session.feed(&fed).unwrap();
                let moved: Vec<_> = order.iter().map(|&it| rows[it].clone()).collect();
                for (row, text) in std::mem::replace(&mut rows, moved) {
                    let expected = &expected[row];
                    let so_far = Row {
                        tokens: expected.tokens[..text.tokens.len()].to_vec(),
                        scores: expected.scores[..text.scores.len()].to_vec(),
                    };
                    let kind = kinds[row];
                    text.assert_is(&so_far, &format!("{name}, round {round}, row {row} ({kind})"));
                }
            }
        }
    }
}

/// A prompt whose row has another steering than the one that is joined, in one cache.
#[test]
fn a_row_joins_rows_that_are_steered_otherwise() {
    let model = model("llama");
    let steerings = steerings(&model);
    let hook = |kind: usize| steerings[kind].as_ref().unwrap().hook(&model).unwrap();
    let kinds = [1, 5, 2];
    let prompts: Vec<Vec<u32>> = (0..3).map(|it| prompt(derive_seed(3, it))).collect();
    let expected: Vec<Row> = kinds
        .iter()
        .zip(&prompts)
        .map(|(&kind, prompt)| alone(&model, Some(&hook(kind)), prompt))
        .collect();
    let mut hooks = RowHooks::default();
    let mut cache = None;
    let mut rows: Vec<Row> = Vec::new();
    for step in 0..NEW {
        if step % 2 == 0 && rows.len() < 3 {
            let id = RowId::new(20 + rows.len() as u64);
            let kind = kinds[rows.len()];
            hooks.insert(id, Arc::new(Mutex::new(hook(kind))));
            let text = &prompts[rows.len()];
            let mut joining = model.new_cache(1);
            joining.set_row_ids(&[id]).unwrap();
            joining.set_prompt_end(text.len());
            let logits = model.forward(&[text], &mut joining, &mut hooks).unwrap();
            let logits: Vec<f32> = logits.contiguous().unwrap().to_vec_exact().unwrap();
            let mut row = Row::default();
            row.choose(&logits[logits.len() - model.vocab_size()..]);
            rows.push(row);
            match &mut cache {
                None => cache = Some(joining),
                Some(all) => all.join(&joining).unwrap(),
            }
        }
        let cache = cache.as_mut().unwrap();
        let fed: Vec<u32> = rows.iter().map(|it| *it.tokens.last().unwrap()).collect();
        let fed: Vec<&[u32]> = fed.chunks(1).collect();
        let logits = model.forward(&fed, cache, &mut hooks).unwrap();
        let logits: Vec<f32> = logits.contiguous().unwrap().to_vec_exact().unwrap();
        for (row, logits) in rows.iter_mut().zip(logits.chunks_exact(model.vocab_size())) {
            row.choose(logits);
        }
    }
    for (kind, (row, expected)) in kinds.iter().zip(rows.iter().zip(expected)) {
        let count = row.tokens.len().min(NEW);
        let cut = Row {
            tokens: row.tokens[..count].to_vec(),
            scores: row.scores[..count * model.vocab_size()].to_vec(),
        };
        let expected = Row {
            tokens: expected.tokens[..count].to_vec(),
            scores: expected.scores[..count * model.vocab_size()].to_vec(),
        };
        cut.assert_is(&expected, &format!("kind {kind}"));
    }
}

#[test]
fn a_steering_and_its_hook_cross_threads() {
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Arc<Steering>>();
    is_shared::<SteeringHook>();
    let model = model("llama");
    let hook = steerings(&model)[1].as_ref().unwrap().hook(&model).unwrap();
    let here = alone(&model, Some(&hook), &prompt(1));
    let there = std::thread::scope(|scope| {
        let hook = hook.clone();
        let run = move || {
            let model = self::model("llama");
            alone(&model, Some(&hook), &prompt(1))
        };
        scope.spawn(run).join().unwrap()
    });
    assert_eq!(here.tokens, there.tokens);
    assert_eq!(here.scores, there.scores);
}
