//! What a hook does to the residual stream, and that it means the same whichever way tokens are fed.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{collections::BTreeMap, path::Path};

use mlx_rs::Array;
use mlxgk_kv_cache::KvCache;
use mlxgk_logits_processors::{Context, LogitsProcessor, Stage};
use mlxgk_mlx_models::{ComputeDtype, Decoder, ResidualHook};
use mlxgk_steering::{
    Clause, Conflict, ErrorKind, HookPoint, Injection, Operation, Schedule, Steering,
    SteeringVectors,
};

const POINT: HookPoint = HookPoint::ResidPost(1);
const PROMPT: [u32; 6] = [5, 9, 2, 7, 7, 1];

fn model(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Decoder::load(&folder, ComputeDtype::Float32).unwrap()
}

fn values(array: &Array) -> Vec<f32> {
    array.contiguous().unwrap().to_vec_exact().unwrap()
}

/// Numbers without a pattern, about 1 in size.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let one = SteeringVectors::new([(POINT, vec![1.0; len])]).unwrap();
    one.random_like(seed).unwrap().get(POINT).unwrap().to_vec()
}

fn vectors(seed: u64, len: usize) -> SteeringVectors {
    SteeringVectors::new([(POINT, noise(seed, len))]).unwrap()
}

/// What a steering makes of three tokens of the residual stream, and what they were.
fn through(model: &Decoder, steering: &Steering) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let width = model.hidden_size();
    let before = noise(77, 3 * width);
    let hidden = Array::from_slice(&before, &[1, 3, width as i32]);
    let mut cache = model.new_cache(1);
    cache.set_prompt_end(3);
    let after = steering.hook(model).unwrap().apply(POINT, hidden, &cache.step(3)).unwrap();
    let tokens = |it: &[f32]| it.chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>();
    (tokens(&before), tokens(&values(&after)))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn norm(a: &[f32]) -> f64 {
    dot(a, a).sqrt()
}

#[test]
fn the_identities_hold() {
    let model = model("llama");
    let v = noise(3, model.hidden_size());
    let unit: Vec<f32> = v.iter().map(|it| (f64::from(*it) / norm(&v)) as f32).collect();
    let of = |operation, alpha| {
        Injection::new(vectors(3, model.hidden_size()), alpha).operation(operation)
    };
    for (operation, alpha) in [
        (Operation::Ablate, 1.0),
        (Operation::AblatePartial, 0.25),
        (Operation::Clamp, 2.5),
        (Operation::Clamp, 0.0),
        (Operation::CapMax, -0.1),
        (Operation::CapMin, 0.2),
        (Operation::NormPreserve, -3.0),
        (Operation::Rotate, 0.7),
        (Operation::AddUnit, 4.0),
        (Operation::AddRelative, 0.5),
        (Operation::AblateAdd, 0.5),
        (Operation::Replace, 1.0),
    ] {
        let (before, after) = through(&model, &of(operation, alpha).into());
        for (h, new) in before.iter().zip(&after) {
            let (was, is) = (dot(&unit, h), dot(&unit, new));
            let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "{operation}: {a} and {b}");
            match operation {
                Operation::Ablate => near(is, 0.0),
                Operation::AblatePartial => near(is, 0.75 * was),
                Operation::Clamp => near(is, alpha),
                Operation::CapMax => near(is, was.min(alpha)),
                Operation::CapMin => near(is, was.max(alpha)),
                Operation::AddUnit => near(is, was + alpha),
                Operation::AddRelative => near(is, was + alpha * norm(h)),
                Operation::AblateAdd => near(is, alpha * norm(&v)),
                Operation::Replace => assert_eq!(new, &v),
                _ => near(norm(new) / norm(h), 1.0),
            }
            if operation == Operation::Rotate {
                near(dot(h, new) / norm(h).powi(2), alpha.cos());
            }
        }
    }
}

#[test]
fn a_subspace_and_an_affine_map() {
    let model = model("llama");
    let width = model.hidden_size();
    let several: Vec<_> = (1..4).map(|seed| vectors(seed, width)).collect();
    let (_, after) = through(&model, &Injection::subspace(several).into());
    for new in &after {
        for seed in 1..4 {
            assert!(dot(&noise(seed, width), new).abs() < 2e-5);
        }
    }

    let mut matrix = vec![0.0; width * width];
    // A shift by one place, and an offset.
    (0..width).for_each(|row| matrix[row * width + (row + 1) % width] = 1.0);
    let maps = BTreeMap::from([(POINT, matrix)]);
    let (before, after) = through(&model, &Injection::affine(maps, vectors(9, width)).into());
    let offset = noise(9, width);
    for (h, new) in before.iter().zip(&after) {
        for at in 0..width {
            assert!((new[at] - h[(at + 1) % width] - offset[at]).abs() < 1e-6);
        }
    }
}

#[test]
fn several_injections_add_up_or_give_way_or_are_refused() {
    let model = model("llama");
    let width = model.hidden_size();
    let at =
        |seed, clause: Clause| Injection::new(vectors(seed, width), 1.0).positions(clause.into());
    let first = at(1, Clause::PromptWindow(0, Some(2)));
    let second = at(2, Clause::PromptWindow(1, None));
    let both = |conflict| Steering::new(vec![first.clone(), second.clone()], conflict);
    let moved = |steering: &Steering| {
        let (before, after) = through(&model, steering);
        (0..3).map(|at| after[at][0] - before[at][0]).collect::<Vec<_>>()
    };
    let (a, b) = (noise(1, width)[0], noise(2, width)[0]);
    let near = |found: Vec<f32>, expected: [f32; 3]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
    };
    near(moved(&both(Conflict::Sum)), [a, a + b, b]);
    near(moved(&both(Conflict::Priority)), [a, a, b]);
    let mut cache = model.new_cache(1);
    cache.set_prompt_end(3);
    let mut hook = both(Conflict::Error).hook(&model).unwrap();
    let error = model.forward(&[&[1, 2, 3]], &mut cache, &mut hook).unwrap_err().to_string();
    assert!(error.contains("resid_post.1") && error.contains("the same token"), "{error}");
    assert_eq!(cache.len(), 0);
}

/// A steering per operation, the affine map and the subspace of two vectors among them.
fn every_operation(model: &Decoder, alpha: f64, positions: &str) -> Vec<(String, Steering)> {
    let width = model.hidden_size();
    let mut shift = vec![0.0; width * width];
    (0..width).for_each(|row| shift[row * width + (row + 1) % width] = 1.0);
    let mut all = vec![
        Injection::affine(BTreeMap::from([(POINT, shift)]), vectors(9, width)),
        Injection::subspace(vec![vectors(1, width), vectors(2, width)]),
    ];
    all.extend(
        Operation::names()
            .map(|name| Injection::new(vectors(1, width), 1.0).operation(name.parse().unwrap())),
    );
    let named = ["affine", "a subspace"].into_iter().chain(Operation::names());
    let steering = all.into_iter().map(|it| it.positions(positions.parse().unwrap()));
    let scaled = steering.map(|it| Steering::from(it).scaled(alpha));
    named.map(str::to_owned).zip(scaled).collect()
}

#[test]
fn alpha_0_changes_no_bit_and_a_hook_that_is_gone_leaves_none_changed() {
    for name in ["llama", "gemma2", "qwen3-q8"] {
        let model = model(name);
        let plain = values(&model.logits_of(&[&PROMPT]).unwrap());
        let through = |steering: &Steering| {
            let mut hook = steering.hook(&model).unwrap();
            let mut cache = model.new_cache(1);
            values(&model.forward(&[&PROMPT], &mut cache, &mut hook).unwrap())
        };
        for (operation, steering) in every_operation(&model, 0.0, "all") {
            // For these 0 is a goal.
            if !["clamp", "cap-max", "cap-min"].contains(&operation.as_str()) {
                assert_eq!(through(&steering), plain, "{name}, {operation}");
            }
        }
        for (operation, steering) in every_operation(&model, 0.7, "all") {
            // A cap may have nothing to do on one side.
            let other = steering.scaled(-100.0);
            let moved = [steering, other].map(|it| worst(&through(&it), &plain));
            assert!(moved[0].max(moved[1]) > 1e-3, "{name}, {operation}: {moved:?}");
            let after = values(&model.logits_of(&[&PROMPT]).unwrap());
            assert_eq!(after, plain, "{name}, {operation}");
        }
        // Nor does one that no token meets.
        for (operation, steering) in every_operation(&model, 0.7, "tokens[99]") {
            assert_eq!(through(&steering), plain, "{name}, {operation}");
        }
    }
}

#[test]
fn a_logit_bias_equals_adding_after_the_final_norm() {
    let heads: Vec<_> = ["llama", "gemma2", "qwen2", "qwen3-q8", "llama-q4", "gemma3-q4"]
        .map(|name| {
            let model = model(name);
            let parts = model.components();
            let mut tokens = PROMPT.to_vec();
            for (schedule, positions) in [
                ("constant", "all"),
                ("ramp:0:4", "generation"),
                ("points:0=1,3=-1", "generation[1..5]"),
                ("constant", "all,-tokens[8]"),
                ("warmup:3", "prompt[-1..],tokens[4;8]"),
            ] {
                let at = |seed, alpha| {
                    let one = SteeringVectors::new([(
                        HookPoint::FinalNorm,
                        noise(seed, model.hidden_size()),
                    )]);
                    Injection::new(one.unwrap(), alpha)
                        .schedule(schedule.parse().unwrap())
                        .positions(positions.parse().unwrap())
                };
                let unit = at(2, -0.5).operation(Operation::AddUnit);
                let steering = Steering::from(at(1, 0.3)).with(unit);
                let mut hook = steering.hook(&model).unwrap();
                let bias = steering.logit_bias(&model).unwrap();
                tokens.truncate(PROMPT.len());
                for next in [3, 8, 4, 8, 11] {
                    let mut cache = model.new_cache(1);
                    cache.set_prompt_end(PROMPT.len());
                    let hooked = model.forward(&[&tokens], &mut cache, &mut hook).unwrap();
                    let vocab = model.vocab_size();
                    let hooked = values(&hooked);
                    let plain = values(&model.logits_of(&[&tokens]).unwrap());
                    let last = (tokens.len() - 1) * vocab;
                    let mut biased = plain[last..].to_vec();
                    let context = Context::new(&tokens, PROMPT.len());
                    bias.process(&context, &mut biased).unwrap();
                    let error = worst(&biased, &hooked[last..]);
                    let size = hooked[last..].iter().fold(1.0_f32, |most, it| most.max(it.abs()));
                    assert!(error < 4e-6 * size, "{name} {schedule} {positions}: {error}");
                    tokens.push(next);
                }
            }
            (parts.tied_head, parts.quantized, parts.logit_cap.is_some())
        })
        .into();
    for head in [(true, false, true), (false, false, false), (true, true, false)] {
        assert!(heads.contains(&head), "{head:?} is missing among {heads:?}");
    }
    assert!(heads.contains(&(false, true, false)), "{heads:?}");
}

/// Bans stay bans, and what stands at the cap, or was pushed beyond it, is left alone.
#[test]
fn a_logit_bias_behind_a_soft_cap_takes_any_score() {
    let model = model("gemma2");
    let cap = model.components().logit_cap.unwrap();
    let norm = SteeringVectors::new([(HookPoint::FinalNorm, noise(5, model.hidden_size()))]);
    let steering = Steering::from(Injection::new(norm.unwrap(), 2.0));
    let bias = steering.logit_bias(&model).unwrap();
    let odd = [f32::NEG_INFINITY, f32::INFINITY, cap, -cap, 1.3 * cap, -1.3 * cap];
    let mut scores = vec![0.25; model.vocab_size()];
    scores[..odd.len()].copy_from_slice(&odd);
    bias.process(&Context::new(&PROMPT, PROMPT.len()), &mut scores).unwrap();
    assert_eq!(scores[..odd.len()], odd);
    assert!(scores[odd.len()..].iter().all(|it| it.is_finite() && *it != 0.25));
}

#[test]
fn a_logit_bias_comes_before_bans_and_takes_any_context() {
    let model = model("llama");
    let norm = SteeringVectors::new([(HookPoint::FinalNorm, noise(5, model.hidden_size()))]);
    let injection = Injection::new(norm.unwrap(), 2.0).schedule("warmup:4".parse().unwrap());
    let bias = Steering::from(injection).logit_bias(&model).unwrap();
    assert_eq!(bias.stage(), Stage::Guidance);
    for context in [
        Context { tokens: &PROMPT, prompt_len: 40, padding: 0, row: 0 },
        Context { tokens: &PROMPT, prompt_len: 2, padding: 40, row: 0 },
        Context { tokens: &[], prompt_len: 0, padding: 0, row: 0 },
    ] {
        bias.process(&context, &mut vec![0.5; model.vocab_size()]).unwrap();
    }
}

/// A control for several files is as many directions, not one.
#[test]
fn random_controls_of_several_files_are_independent() {
    let model = model("llama");
    let width = model.hidden_size();
    // Two random directions span what two do: of random vectors, ablation leaves none of either.
    let two = Steering::from(Injection::subspace(vec![vectors(1, width), vectors(2, width)]));
    let (before, after) = through(&model, &two.randomized(8).unwrap());
    let lost = |before: &[Vec<f32>], after: &[Vec<f32>]| -> Vec<Vec<f32>> {
        let minus = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(a, b)| a - b).collect();
        before.iter().zip(after).map(minus).collect()
    };
    let lost = lost(&before, &after);
    let cosine = (dot(&lost[0], &lost[1]) / (norm(&lost[0]) * norm(&lost[1]))).abs();
    assert!(cosine < 0.999, "everything that is taken out lies on one line: {cosine}");
    // One file draws what it drew, and another seed draws another.
    let one = Steering::from(Injection::new(vectors(1, width), 1.0));
    assert_eq!(one.randomized(8).unwrap(), one.randomized(8).unwrap());
    assert_ne!(one.randomized(8).unwrap(), one.randomized(9).unwrap());
}

/// At full strength nothing is left of the stream, not even NaN.
#[test]
fn a_replaced_stream_is_gone() {
    let model = model("llama");
    let width = model.hidden_size();
    let v = noise(3, width);
    let replace = Injection::new(vectors(3, width), 1.0).operation(Operation::Replace);
    let mut spoilt = noise(77, 3 * width);
    (spoilt[1], spoilt[width + 2]) = (f32::NAN, f32::INFINITY);
    for (positions, schedule, replaced) in [
        ("all", "constant", [true, true, true]),
        ("prompt[0..2]", "constant", [true, true, false]),
        ("tokens[7]", "constant", [false, true, false]),
    ] {
        let injection = replace.clone().positions(positions.parse().unwrap());
        let steering = Steering::from(injection.schedule(schedule.parse().unwrap()));
        let hidden = Array::from_slice(&spoilt, &[1, 3, width as i32]);
        let mut cache = model.new_cache(1);
        cache.set_prompt_end(3);
        let step = cache.step(3).with_tokens(&Array::from_slice(&[5_u32, 7, 9], &[1, 3]));
        let after = values(&steering.hook(&model).unwrap().apply(POINT, hidden, &step).unwrap());
        for (at, replaced) in replaced.into_iter().enumerate() {
            let token = &after[at * width..][..width];
            if replaced {
                assert_eq!(token, v, "{positions}");
            } else {
                let before = &spoilt[at * width..][..width];
                assert!(token.iter().zip(before).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }
}

#[test]
fn what_scores_cannot_show_is_refused() {
    let model = model("llama");
    let injection = Injection::new(vectors(1, model.hidden_size()), 1.0);
    for (steering, words) in [
        (Steering::from(injection.clone().operation(Operation::Clamp)), "clamp needs a hook"),
        (Steering::from(injection.clone()).budget(0.1), "a KL budget needs a hook"),
        (
            Steering::new(vec![injection.clone(), injection], Conflict::Priority),
            "priorities need a hook",
        ),
    ] {
        let error = steering.logit_bias(&model).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Log-probabilities of nine tokens after a prompt of six, fed in parts, with whatever came between.
fn in_parts(model: &Decoder, steering: &Steering, parts: &[usize]) -> Vec<f32> {
    let tokens: Vec<u32> = PROMPT.into_iter().chain([3, 8, 4, 11, 6, 2, 9, 5, 12]).collect();
    let mut hook = steering.hook(model).unwrap();
    let mut cache = model.new_cache(1);
    cache.plan(PROMPT.len());
    cache.set_prompt_end(PROMPT.len());
    let mut logits = Vec::new();
    for &count in parts {
        let next = &tokens[cache.len()..][..count];
        // A fork goes its own way and changes nothing.
        model.forward(&[&[1, 1]], &mut cache.fork(), &mut hook).unwrap();
        // Neither does what is rolled back, as after a draft that was refused.
        model.forward(&[&[10, 1, 4]], &mut cache, &mut hook).unwrap();
        cache.trim(3).unwrap();
        logits.extend(values(&model.forward(&[next], &mut cache, &mut hook).unwrap()));
    }
    logits
}

#[test]
fn parts_forks_rollbacks_and_rows_are_all_the_same() {
    for name in ["llama", "gemma3", "qwen3-q8"] {
        let model = model(name);
        for schedule in [
            "constant",
            "warmup:4",
            "ramp:1:5",
            "cosine:6",
            "decay:2",
            "pulse:3:0.5",
            "points:2=1,6=-1",
        ] {
            for operation in [Operation::Add, Operation::Clamp, Operation::NormPreserve] {
                let injection = Injection::new(vectors(1, model.hidden_size()), 2.0)
                    .operation(operation)
                    .schedule(schedule.parse().unwrap())
                    .positions("generation,prompt[1..3],-tokens[11]".parse().unwrap());
                let steering = Steering::from(injection);
                let whole = in_parts(&model, &steering, &[15]);
                let plain = in_parts(&model, &Steering::default(), &[15]);
                assert!(worst(&whole, &plain) > 1e-2, "{name} {schedule} {operation}");
                for parts in [vec![6, 1, 1, 1, 1, 1, 1, 1, 1, 1], vec![4, 2, 3, 6], vec![1; 15]] {
                    let error = worst(&whole, &in_parts(&model, &steering, &parts));
                    assert!(error < 1e-4, "{name} {schedule} {operation} {parts:?}: {error}");
                }
                let batch = beside_a_longer_row(&model, &steering);
                assert!(worst(&whole, &batch) < 1e-4, "{name} {schedule} {operation}, padded");
            }
        }
    }
}

/// As [`in_parts`], as the shorter row of a batch whose rows swap places half-way.
fn beside_a_longer_row(model: &Decoder, steering: &Steering) -> Vec<f32> {
    let other: Vec<u32> = (1..=18).collect();
    let tokens: Vec<u32> =
        [0, 0, 0].into_iter().chain(PROMPT).chain([3, 8, 4, 11, 6, 2, 9, 5, 12]).collect();
    let mut hook = steering.hook(model).unwrap();
    let mut cache: KvCache = model.new_padded_cache(&[3, 0]);
    cache.plan(9);
    cache.set_prompt_end(9);
    let vocab = model.vocab_size();
    let first = model.forward(&[&tokens[..12], &other[..12]], &mut cache, &mut hook).unwrap();
    let mut logits = values(&first)[3 * vocab..12 * vocab].to_vec();
    cache.select(&[1, 0]).unwrap();
    let second = model.forward(&[&other[12..], &tokens[12..]], &mut cache, &mut hook).unwrap();
    logits.extend(&values(&second)[6 * vocab..]);
    logits
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn half_precision_keeps_its_dtype_and_its_norms() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama-llama3");
    let model = Decoder::load(&folder, ComputeDtype::Float16).unwrap();
    let width = model.hidden_size();
    // Squares of these overflow half precision.
    let big = Array::from_slice(&vec![500.0_f32; width], &[1, 1, width as i32]);
    let big = big.as_dtype(model.dtype()).unwrap();
    for operation in [Operation::Add, Operation::NormPreserve, Operation::Ablate, Operation::Rotate]
    {
        let injection = Injection::new(vectors(1, width), 2.0).operation(operation);
        let mut hook = Steering::from(injection).hook(&model).unwrap();
        let new = hook.apply(POINT, big.clone(), &model.new_cache(1).step(1)).unwrap();
        assert_eq!(new.dtype(), model.dtype(), "{operation}");
        let new = values(&new.as_type::<f32>().unwrap());
        assert!(new.iter().all(|it| it.is_finite()), "{operation}");
        if operation == Operation::NormPreserve {
            assert!((norm(&new) / (500.0 * (width as f64).sqrt()) - 1.0).abs() < 2e-3);
        }
    }
}

#[test]
fn what_does_not_fit_the_model_is_named() {
    let model = model("llama");
    let width = model.hidden_size();
    let one = |point, len| SteeringVectors::new([(point, vec![1.0; len])]).unwrap();
    let zero = SteeringVectors::new([(POINT, vec![0.0; width])]).unwrap();
    for (injection, kind, words) in [
        (Injection::new(one(POINT, 7), 1.0), ErrorKind::Vector, "resid_post.1 has 7 values"),
        (
            Injection::new(one(HookPoint::ResidPost(3), width), 1.0),
            ErrorKind::Layer,
            "resid_post.3: the model has layers 0 to 2",
        ),
        (Injection::new(one(POINT, width), f64::NAN), ErrorKind::Parameter, "alpha must be finite"),
        (Injection::new(one(POINT, width), 1e300), ErrorKind::Parameter, "alpha must be finite"),
        (Injection::new(zero, 1.0).operation(Operation::Ablate), ErrorKind::Vector, "all zeros"),
        (
            Injection::new(one(POINT, width), 1.0).schedule(Schedule::Warmup { steps: 0 }),
            ErrorKind::Parameter,
            "at least 1 step",
        ),
        (
            Injection::affine(BTreeMap::new(), one(POINT, width)),
            ErrorKind::Vector,
            "needs a matrix of 32 × 32",
        ),
    ] {
        let error = Steering::from(injection).hook(&model).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn the_prompts_end_has_to_be_known_where_it_matters() {
    let model = model("llama");
    let injection = Injection::new(vectors(1, model.hidden_size()), 1.0);
    let mut hook =
        Steering::from(injection.positions(Clause::Generation.into())).hook(&model).unwrap();
    let error = model.forward(&[&PROMPT], &mut model.new_cache(1), &mut hook).unwrap_err();
    assert!(error.to_string().contains("set_prompt_end"), "{error}");
}
