//! Caches of several texts as one: what was moved, what was read again, and what is refused.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{path::Path, sync::Arc};

use mlx_rs::{Array, ops::logsumexp_axis};
use mlxgk_kv_cache::{CacheOptions, Column, KvCache, Quantization, RowId, Step};
use mlxgk_mlx_models::{ComputeDtype, Decoder, HookPoint, NoHook, ResidualHook, Result};

fn load(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Decoder::load(folder, ComputeDtype::Float32).unwrap()
}

fn ids(len: usize, salt: u32) -> Vec<u32> {
    (0..len as u32).map(|it| (it * it * 7 + it * 37 + salt * 53) % 60 + 3).collect()
}

#[test]
fn texts_put_together_have_the_keys_of_where_they_stand() {
    for name in ["llama", "llama-yarn", "llama-linear", "mistral", "qwen3", "gemma3", "phi3"] {
        let model = load(name);
        let (a, b) = (ids(13, 1), ids(9, 2));
        let filled = |text: &[u32]| {
            let mut cache = model.new_cache(1);
            model.forward(&[text], &mut cache, &mut NoHook).unwrap();
            cache
        };
        let (first, second) = (filled(&a), filled(&b));
        let both = model.concat(&[&first, &second], 0, &mut NoHook).unwrap();
        let whole = filled(&[a.clone(), b.clone()].concat());
        assert_eq!(both.tokens(0), whole.tokens(0), "{name}");
        assert_eq!(both.windows().collect::<Vec<_>>(), whole.windows().collect::<Vec<_>>());
        let last = |cache: &KvCache, layer: usize, what: &str| {
            let array = cache.state().unwrap().arrays[&format!("layers.{layer}.{what}")].clone();
            let newest = array.split_at_indices(&[array.dim(2) - 9], 2).unwrap()[1].clone();
            newest.contiguous().unwrap().to_vec_exact::<f32>().unwrap()
        };
        // What the first layer keeps of a token depends on the token and its place alone.
        for what in ["keys", "values"] {
            let (ours, theirs) = (last(&both, 0, what), last(&whole, 0, what));
            assert_near(&ours, &theirs, 1e-5, &format!("{name}: {what}"));
            assert_ne!(last(&both, 1, what), last(&whole, 1, what), "{name}: nobody saw the first");
        }
        // The first text is untouched, and so are the caches.
        assert_eq!(first.state_hash().unwrap(), filled(&a).state_hash().unwrap(), "{name}");
        let mut back = both.fork();
        back.trim(b.len()).unwrap();
        assert_eq!(back.tokens(0), a, "{name}");
        let mut on = both.fork();
        model.forward(&[&ids(4, 3)], &mut on, &mut NoHook).unwrap();
        assert_eq!(both.len(), 22);
    }
    let model = load("llama");
    let refused = |model: &Decoder, caches: [&KvCache; 2]| {
        model.concat(&caches, 1, &mut NoHook).unwrap_err().to_string()
    };
    let (empty, other) = (model.new_cache(1), load("mistral").new_cache(1));
    let error = refused(&model, [&empty, &other]);
    assert!(error.contains("made for another model"), "{error}");
    let error = refused(&model, [&empty, &empty]);
    assert!(error.contains("padding, or nothing in it"), "{error}");
    let long = load("phi3-longrope-5x");
    let error = refused(&long, [&long.new_cache(1), &long.new_cache(1)]);
    assert!(error.starts_with("longrope rotates"), "{error}");
}

/// Adds more to a token the further it stands behind the prompt's end.
struct Growing;

impl ResidualHook for Growing {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        if point != HookPoint::ResidPost(0) {
            return Ok(hidden);
        }
        let end = step.prompt_end(0).unwrap_or(0);
        let columns = step.start()..step.start() + step.count();
        let strengths = step.strengths().map_or(vec![1.0; step.count()], <[f32]>::to_vec);
        let pushes =
            columns.zip(strengths).map(|(at, it)| it * at.saturating_sub(end) as f32 / 8.0);
        let pushes: Vec<f32> = pushes.collect();
        Ok(hidden.add(Array::from_slice(&pushes, &[1, pushes.len() as i32, 1]))?)
    }

    fn name(&self, _: RowId) -> Option<Arc<str>> {
        Some("growing".into())
    }
}

fn hook(steered: bool) -> Box<dyn ResidualHook> {
    if steered { Box::new(Growing) } else { Box::new(NoHook) }
}

/// Logits of all tokens.
fn feed(
    model: &Decoder,
    cache: &mut KvCache,
    rows: &[&[u32]],
    mut hook: Box<dyn ResidualHook>,
) -> Array {
    let logits = model.forward(rows, cache, &mut hook).unwrap();
    logits.eval().unwrap();
    cache.evaluate().unwrap();
    logits
}

/// The newest columns of a layer: its keys, or its values.
#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], most: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() < most, "{what}: number {at} is {a}, expected {b}");
    }
}

fn newest(cache: &KvCache, layer: usize, what: &str, count: usize) -> Vec<f32> {
    let array = cache.state().unwrap().arrays[&format!("layers.{layer}.{what}")].clone();
    let newest = array.split_at_indices(&[array.dim(2) - count as i32], 2).unwrap()[1].clone();
    newest.swap_axes(1, 2).unwrap().contiguous().unwrap().to_vec_exact::<f32>().unwrap()
}

#[test]
fn what_is_read_again_of_a_text_put_behind_another_is_as_in_one_pass() {
    // Of the second text the layers with a window have dropped columns.
    for (name, steered) in [
        ("llama", false),
        ("llama-yarn", false),
        ("mistral", false),
        ("gemma3", false),
        ("qwen3-moe", false),
        ("cohere2", false),
        ("llama", true),
        ("gemma3", true),
    ] {
        let model = load(name);
        let (a, b) = (ids(23, 1), ids(350, 2));
        let (mut first, mut second) = (model.new_cache(1), model.new_cache(1));
        feed(&model, &mut first, &[&a], hook(steered));
        first.set_prompt_end(0);
        second.set_prompt_end(300);
        // In two passes, so that a window has moved.
        let read = |cache: &mut KvCache| {
            for part in [&b[..250], &b[250..]] {
                cache.set_strengths(part.len(), &[0.5]).unwrap();
                feed(&model, cache, &[part], hook(steered));
            }
        };
        read(&mut second);
        let plain = model.concat(&[&first, &second], 0, &mut NoHook).unwrap();
        let mut whole = first.fork();
        whole.set_prompt_end(323);
        read(&mut whole);
        for again in [0, 1, 40, 320, 350, 351] {
            let both = model.concat(&[&first, &second], again, &mut *hook(steered)).unwrap();
            assert_eq!(both.tokens(0), [a.clone(), b.clone()].concat(), "{name}, {again}");
            assert_eq!(both.prompt_end(0), Some(323), "{name}, {again}");
            let reread = again.min(b.len());
            for (layer, window) in both.windows().enumerate().take(model.layers().len()) {
                // What the layer still holds of the second text.
                let held = window.map_or(b.len(), |it| it.min(b.len()));
                let kept = (b.len() - reread).min(held);
                for what in ["keys", "values"] {
                    let [ours, plain, whole] =
                        [&both, &plain, &whole].map(|it| newest(it, layer, what, held));
                    let width = ours.len() / held;
                    let cut = (held - kept) * width;
                    assert!(ours[cut..] == plain[cut..], "{name}, {again}: {what} of {layer}");
                    let most = whole.iter().map(|it| it.abs()).fold(1.0, f32::max);
                    let what = format!("{name}, {again}: {what} of {layer}");
                    assert_near(&ours[..cut], &whole[..cut], 1e-5 * most, &what);
                }
            }
            if reread == b.len() {
                let (mut both, mut whole, mut next) = (both, whole.fork(), 7);
                let scores = |cache: &mut KvCache, token: u32| {
                    let logits = feed(&model, cache, &[&[token]], hook(steered));
                    let scores = logits.subtract(logsumexp_axis(&logits, -1, true).unwrap());
                    scores.unwrap().contiguous().unwrap().to_vec_exact::<f32>().unwrap()
                };
                for _ in 0..6 {
                    let (ours, theirs) = (scores(&mut both, next), scores(&mut whole, next));
                    // As in tests/cache.rs: log-probabilities beyond -10 within a millionth.
                    let largest = theirs.iter().map(|it| it.abs()).fold(10.0, f32::max);
                    assert_near(&ours, &theirs, 1e-6 * largest, &format!("{name}, {again}"));
                    let best = |it: &[f32]| (0..it.len()).max_by(|a, b| it[*a].total_cmp(&it[*b]));
                    assert_eq!(best(&ours), best(&theirs), "{name}, {again}");
                    next = best(&ours).unwrap() as u32;
                }
            }
        }
        if steered {
            // Without reading nothing is steered, so that nothing is refused.
            let error = model.concat(&[&first, &second], 1, &mut NoHook).unwrap_err().to_string();
            assert!(error.contains("filled under the steering `growing`"), "{error}");
        }
    }
    // Embeddings cannot be read again, tokens behind them cannot either, and neither can what is not there.
    let model = load("llama");
    let mut soft = model.new_cache(1);
    let columns = [Column::embedded(&[0.5]), Column::Token(5)];
    let embedded = model.embed(&Array::from_slice(&[5_u32, 9], &[1, 2])).unwrap();
    model.hidden_from_embeddings(&embedded, &[&columns], &mut soft, &mut NoHook).unwrap();
    assert_eq!(model.concat(&[&soft, &soft], 0, &mut NoHook).unwrap().len(), 4);
    let error = model.concat(&[&soft, &soft], 1, &mut NoHook).unwrap_err().to_string();
    assert!(error.contains("holds embeddings, whose numbers the cache does not keep"), "{error}");
    let error = soft.fork().concat(&soft, 3, &mut |_, keys, _| Ok(keys.clone())).unwrap_err();
    let expected = "caches cannot be put together: the first does not end with the first 3 tokens of the \
                    second";
    assert_eq!(error.to_string(), expected);
    for (options, name, expected) in [
        (CacheOptions::new().bounded(1, 9), "llama", "bounded, quantized or of a single pass"),
        (
            CacheOptions::new().quantized(Quantization::new(32, 8).unwrap()),
            "qwen3-q8",
            "bounded, quantized or of a single pass",
        ),
        (CacheOptions::new(), "qwen3-next", "the state of a layer cannot follow another"),
        (CacheOptions::new(), "llama4", "a layer's pieces would be cut elsewhere"),
    ] {
        let model = load(name);
        let mut cache = model.new_cache_with(&[0], &options).unwrap();
        model.hidden(&[&ids(5, 1)], &mut cache, &mut NoHook).unwrap();
        for again in [0, 2] {
            let error = model.concat(&[&cache, &cache], again, &mut NoHook).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
