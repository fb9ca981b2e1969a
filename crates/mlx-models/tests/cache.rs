//! What must hold of every family and every kind of cache: however a text is cut into passes, taken
//! back, forked, joined by others and left by them, each row's scores are those it has alone.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlx_rs::{
    Array,
    ops::{concatenate, indexing::TryIndexOp, logsumexp_axis, sigmoid, tanh},
};
use mlxgk_kv_cache::{CacheOptions, Column, KvCache, LayerSpec, Quantization, Step};
use mlxgk_mlx_models::{
    AttentionRecorder, BlockPass, ComputeDtype, CustomBlock, Decoder, HookPoint, NoHook,
    ResidualHook, Result,
};

const FAMILIES: [&str; 15] = [
    "gemma",
    "gemma2",
    "gemma3",
    "granite-hybrid",
    "lfm2",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "qwen3-next",
    "qwen3_5",
    "qwen3_5-moe",
    "phi3-longrope",
];
/// Families whose heads are wide enough to be quantized.
const WIDE: [&str; 2] = ["gemma3-q4", "qwen3-q8"];

fn load(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Decoder::load(folder, ComputeDtype::Float32).unwrap()
}

/// A gated linear recurrence after a short convolution, as hybrids have them: `s ← a · s + (1 - a) ·
/// v` per channel, with `a` from the input.
#[derive(Debug)]
struct Recurrence {
    /// Gate, value, query and output, `[hidden, hidden]` each.
    products: [Array; 4],
    /// Of this token and the two before it, `[hidden]` each.
    taps: [Array; 3],
    hidden: i32,
}

impl Recurrence {
    fn new(hidden: usize, seed: usize) -> Self {
        let noise = |salt: usize, shape: &[i32], size: f32| {
            let count: i32 = shape.iter().product();
            let value = |it: usize| (((it + 1) * (seed + salt) * 7919) % 1009) as f32 / 504.5 - 1.0;
            let values: Vec<f32> = (0..count as usize).map(|it| size * value(it)).collect();
            Array::from_slice(&values, shape)
        };
        let width = hidden as i32;
        let size = 1.0 / (hidden as f32).sqrt();
        Self {
            products: [3, 5, 11, 13].map(|salt| noise(salt, &[width, width], 2.0 * size)),
            taps: [17, 19, 23].map(|salt| noise(salt, &[width], 1.0)),
            hidden: width,
        }
    }
}

impl CustomBlock for Recurrence {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        let (rows, tokens, width) = (hidden.dim(0), hidden.dim(1), self.hidden);
        let zeros = |shape: &[i32]| {
            Array::from_slice(&vec![0.0_f32; shape.iter().product::<i32>() as usize], shape)
        };
        let (mut state, before) = match pass.state(layer)? {
            Some([state, before]) => (state.clone(), before.clone()),
            _ => (zeros(&[rows, 1, width]), zeros(&[rows, 2, width])),
        };
        // Padding is not input, and closes the gate.
        let real = pass.step().real().map(|it| it.expand_dims(-1)).transpose()?;
        let input = match &real {
            Some(real) => hidden.multiply(real)?,
            None => hidden.clone(),
        };
        let all = concatenate(&[&before, &input], 1)?;
        let tap = |at: i32| all.try_index((.., 2 - at..2 - at + tokens, ..));
        let mut mixed = tap(0)?.multiply(&self.taps[0])?;
        mixed = mixed.add(tap(1)?.multiply(&self.taps[1])?)?;
        mixed = mixed.add(tap(2)?.multiply(&self.taps[2])?)?;
        let mut gate = sigmoid(mixed.matmul(&self.products[0])?)?;
        if let Some(real) = &real {
            gate = mlx_rs::ops::select(real, &gate, Array::from_f32(1.0))?;
        }
        let value = mixed.matmul(&self.products[1])?;
        let query = mixed.matmul(&self.products[2])?;
        let mut outputs = Vec::new();
        for token in 0..tokens {
            let at = |it: &Array| it.try_index((.., token..token + 1, ..));
            let (gate, value) = (at(&gate)?, at(&value)?);
            let kept = Array::from_f32(1.0).subtract(&gate)?;
            state = gate.multiply(&state)?.add(kept.multiply(&value)?)?;
            outputs.push(at(&query)?.multiply(&state)?);
        }
        pass.set_state(layer, vec![state, all.try_index((.., tokens.., ..))?])?;
        Ok(tanh(concatenate(&outputs, 1)?)?.matmul(&self.products[3])?)
    }

    fn feed_forward(&self, hidden: &Array) -> Result<Array> {
        Ok(tanh(hidden)?.matmul(&self.products[1])?)
    }

    fn spec(&self) -> LayerSpec {
        LayerSpec::State
    }
}

/// A family with its middle layer replaced by a recurrence.
fn hybrid(name: &str) -> Decoder {
    let mut model = load(name);
    let block = Recurrence::new(model.hidden_size(), 2);
    model.replace_block(1, block).unwrap();
    model
}

/// A model, and how its caches are kept.
struct Case {
    label: String,
    model: Decoder,
    options: CacheOptions,
    /// Rows have to be longer, where a length changes how all of a batch is read.
    least: usize,
}

impl Case {
    fn new(name: &str, model: Decoder, how: &str, options: CacheOptions) -> Self {
        let least = model.original_context().unwrap_or(0);
        Self { label: format!("{name}, {how}"), model, options, least }
    }

    fn cache(&self, padding: &[usize]) -> KvCache {
        self.model.new_cache_with(padding, &self.options).unwrap()
    }

    /// Log-probabilities after the last of `tokens`, one slice per row.
    fn feed(&self, cache: &mut KvCache, rows: &[&[u32]]) -> Vec<Vec<f32>> {
        let logits = self.model.forward(rows, cache, &mut NoHook).unwrap();
        let last = logits.try_index((.., logits.dim(1) - 1.., ..)).unwrap();
        let scores = last.subtract(logsumexp_axis(&last, -1, true).unwrap()).unwrap();
        let scores: Vec<f32> = scores.contiguous().unwrap().to_vec_exact().unwrap();
        scores.chunks(self.model.vocab_size()).map(<[f32]>::to_vec).collect()
    }

    /// Those of one row that is read alone, in one pass.
    fn alone(&self, text: &[u32]) -> Vec<f32> {
        self.feed(&mut self.cache(&[0]), &[text]).swap_remove(0)
    }

    #[track_caller]
    fn near(&self, found: &[f32], expected: &[f32], what: &str) {
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Within 1e-5; where log-probabilities reach beyond -10 (those of the tiny Gemmas do), within a
        // millionth of the largest, some eight units in its last place: kernels that sum in another
        // order differ by that much, and by other amounts on processors with other vectors.
        let largest = expected.iter().map(|it| it.abs()).fold(0.0, f32::max);
        let allowed = 1e-6 * largest.max(10.0);
        assert!(worst < allowed, "{}: {what}: {worst} of {largest}", self.label);
        let best = |it: &[f32]| (0..it.len()).max_by(|a, b| it[*a].total_cmp(&it[*b]));
        assert_eq!(best(found), best(expected), "{}: {what}", self.label);
    }
}

fn cases() -> Vec<Case> {
    let dense = CacheOptions::new;
    let mut cases: Vec<Case> =
        FAMILIES.iter().map(|name| Case::new(name, load(name), "dense", dense())).collect();
    for name in ["llama", "gemma2", "qwen3-moe"] {
        let bounded = CacheOptions::new().bounded(3, 11);
        cases.push(Case::new(name, load(name), "bounded", bounded));
    }
    for name in ["llama", "gemma3"] {
        cases.push(Case::new(name, hybrid(name), "hybrid", dense()));
    }
    for name in WIDE {
        for bits in [4, 8] {
            let quantized = CacheOptions::new().quantized(Quantization::new(32, bits).unwrap());
            cases.push(Case::new(name, load(name), "quantized", quantized));
        }
        let both = CacheOptions::new().quantized(Quantization::new(32, 8).unwrap()).bounded(2, 9);
        cases.push(Case::new(name, hybrid(name), "quantized, bounded, hybrid", both));
    }
    cases
}

fn ids(len: usize, salt: u32) -> Vec<u32> {
    (0..len as u32).map(|it| (it * it * 7 + it * 37 + salt * 53) % 60 + 3).collect()
}

/// How many tokens went through the model, and how many of them a second time.
#[derive(Debug, Default)]
struct Fed {
    again: usize,
    all: usize,
    widest: usize,
}

impl ResidualHook for Fed {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        if point == HookPoint::FinalNorm {
            self.again += step.again();
            self.all += step.count();
            self.widest = self.widest.max(step.count());
        }
        Ok(hidden)
    }
}

#[test]
fn a_cache_goes_through_a_file_bit_for_bit() {
    for case in cases() {
        let text = ids(case.least + 19, 1);
        let mut cache = case.cache(&[0]);
        case.feed(&mut cache, &[&text]);
        let state = cache.state().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.safetensors");
        Array::save_safetensors(state.arrays.iter().map(|(k, v)| (k.as_str(), v)), None, &path)
            .unwrap();
        let described = serde_json::to_string(&state.description).unwrap();
        let mut read = state.clone();
        read.arrays = Array::load_safetensors(&path).unwrap().into_iter().collect();
        read.description = serde_json::from_str(&described).unwrap();
        let mut again = KvCache::from_state(&read).unwrap();
        for part in [&[5_u32][..], &[9, 44, 7], &[3]] {
            let found = case.feed(&mut again, &[part]);
            assert_eq!(found, case.feed(&mut cache, &[part]), "{}", case.label);
        }
    }
}

/// A text that is drafted wrongly again and again is continued as without drafts, and no token is
/// read more often than its draft asks for.
#[test]
fn speculation_on_a_recurrence_equals_plain_decoding_without_reading_the_text_again() {
    let cases = cases();
    for case in cases.iter().filter(|it| it.model.layers().contains(&LayerSpec::State)) {
        let best = |scores: &[f32]| {
            (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap() as u32
        };
        let prompt = ids(40, 3);
        let mut plain = prompt.clone();
        let mut cache = case.cache(&[0]);
        let mut scores = case.feed(&mut cache, &[&prompt]).swap_remove(0);
        for _ in 0..24 {
            plain.push(best(&scores));
            scores = case.feed(&mut cache, &[&plain[plain.len() - 1..]]).swap_remove(0);
        }

        let (mut text, mut fed) = (prompt.clone(), Fed::default());
        let mut cache = case.cache(&[0]);
        let logits = case.model.forward(&[&prompt], &mut cache, &mut fed).unwrap();
        let choices = |logits: &Array| -> Vec<u32> {
            let values: Vec<f32> = logits.contiguous().unwrap().to_vec_exact().unwrap();
            values.chunks(case.model.vocab_size()).map(best).collect()
        };
        text.push(*choices(&logits).last().unwrap());
        let mut rounds = 0;
        while text.len() < plain.len() {
            // A draft of five, of which so many are right.
            let right = rounds % 5;
            let mut draft = vec![*text.last().unwrap()];
            let from = text.len();
            draft.extend((0..5).map(|at| match plain.get(from + at) {
                Some(&token) if at < right => token,
                Some(&token) => (token + 1) % 60,
                None => 1,
            }));
            cache.checkpoint();
            let logits = case.model.forward(&[&draft], &mut cache, &mut fed).unwrap();
            let choices = choices(&logits);
            let accepted = draft[1..].iter().zip(&choices).take_while(|(a, b)| a == b).count();
            text.extend(&choices[..=accepted]);
            let kept = from + accepted;
            case.model.roll_back(kept, &mut cache, &mut fed).unwrap();
            assert_eq!(cache.tokens(0), text[..kept]);
            rounds += 1;
        }
        assert_eq!(text[..plain.len()], plain, "{}", case.label);
        assert!(fed.again <= rounds * 5, "{}: {} read again", case.label, fed.again);
        assert_eq!(fed.all, prompt.len() + rounds * 6 + fed.again);
    }
}

#[test]
fn a_pass_without_a_cache_gives_the_same_scores() {
    for case in cases().iter().filter(|it| it.options == CacheOptions::new()) {
        let rows = [ids(case.least + 12, 1), ids(case.least + 12, 2)];
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let once = case.model.logits_of(&rows).unwrap();
        let mut cache = case.cache(&[0, 0]);
        let cached = case.model.forward(&rows, &mut cache, &mut NoHook).unwrap();
        let same = once.eq(&cached).unwrap().all(false).unwrap().try_item_exact::<bool>().unwrap();
        assert!(same, "{}", case.label);
    }
}

#[test]
fn a_text_that_is_read_again_is_read_in_passes_no_wider_than_before() {
    let model = load("llama");
    let text = ids(700, 1);
    let mut cache = model.new_cache(1);
    for part in text.chunks(300) {
        model.hidden(&[part], &mut cache, &mut NoHook).unwrap();
    }
    let mut fed = Fed::default();
    let uncached = model.hidden_anew(&[&[9]], &mut cache, &mut fed).unwrap();
    assert_eq!((fed.all, fed.again, fed.widest), (701, 700, 300));
    let case = Case::new("llama", load("llama"), "dense", CacheOptions::new());
    let expected = case.alone(&[&text[..], &[9]].concat());
    let logits = model.logits(&uncached).unwrap();
    let scores = logits.subtract(logsumexp_axis(&logits, -1, true).unwrap()).unwrap();
    let scores: Vec<f32> = scores.contiguous().unwrap().to_vec_exact().unwrap();
    case.near(&scores, &expected, "read again");
    // Beyond longrope's original context the whole is read again, too.
    let model = load("phi3-longrope");
    let mut cache = model.new_cache(1);
    model.hidden(&[&ids(24, 1)], &mut cache, &mut NoHook).unwrap();
    let mut fed = Fed::default();
    model.hidden(&[&[9]], &mut cache, &mut fed).unwrap();
    assert_eq!((fed.all, fed.again, cache.len()), (25, 24, 25));
    let mut fed = Fed::default();
    model.roll_back(20, &mut cache, &mut fed).unwrap();
    assert_eq!((fed.all, fed.again, cache.len()), (20, 20, 20));
    assert!(model.roll_back(21, &mut cache, &mut NoHook).is_err());
}

#[test]
fn embeddings_are_fed_like_the_tokens_they_are_of() {
    for name in ["llama", "gemma3"] {
        let model = load(name);
        let text = ids(9, 1);
        let ids = Array::from_slice(&text, &[1, 9]);
        let embedded = model.embed(&ids).unwrap();
        let columns: Vec<Column> = text.iter().map(|&it| Column::Token(it)).collect();
        let (mut one, mut other) = (model.new_cache(1), model.new_cache(1));
        let by_id = model.hidden(&[&text], &mut one, &mut NoHook).unwrap();
        let by_row =
            model.hidden_from_embeddings(&embedded, &[&columns], &mut other, &mut NoHook).unwrap();
        assert!(
            by_id.eq(&by_row).unwrap().all(false).unwrap().try_item_exact::<bool>().unwrap(),
            "{name}"
        );
        assert_eq!(other.tokens(0), text);
        let wrong =
            model.hidden_from_embeddings(&embedded, &[&columns[1..]], &mut other, &mut NoHook);
        assert!(wrong.unwrap_err().to_string().contains("embeddings of shape"));

        // What has no token cannot be read again.
        let mut cache = model.new_cache(1);
        let soft = [Column::embedded(&[1.0]), Column::Token(3)];
        let two = embedded.try_index((.., 0..2, ..)).unwrap();
        model.hidden_from_embeddings(&two, &[&soft], &mut cache, &mut NoHook).unwrap();
        assert_eq!((cache.len(), cache.tokens(0)), (2, vec![]));
        let error = model.hidden_anew(&[&[5]], &mut cache, &mut NoHook).unwrap_err();
        assert!(error.to_string().contains("holds embeddings"), "{error}");
        assert_eq!(cache.len(), 2);
    }
}

#[test]
fn attention_weights_are_those_that_the_scores_come_from() {
    for case in cases() {
        let text = ids(case.least + 23, 1);
        let layers = case.model.layers().len();
        let expected = case.alone(&text);
        let mut whole = AttentionRecorder::new(0..layers);
        let logits = case.model.forward(&[&text], &mut case.cache(&[0]), &mut whole).unwrap();
        let last = logits.try_index((.., logits.dim(1) - 1.., ..)).unwrap();
        let last = last.subtract(logsumexp_axis(&last, -1, true).unwrap()).unwrap();
        let last: Vec<f32> = last.contiguous().unwrap().to_vec_exact().unwrap();
        case.near(&last, &expected, "with weights");
        // In parts, with a draft that is taken back.
        let mut parts = AttentionRecorder::new(0..layers);
        let mut cache = case.cache(&[0]);
        cache.plan(text.len());
        case.model.forward(&[&text[..15]], &mut cache, &mut parts).unwrap();
        cache.checkpoint();
        case.model.forward(&[&ids(4, 9)], &mut cache, &mut parts).unwrap();
        case.model.roll_back(15, &mut cache, &mut parts).unwrap();
        for at in 15..text.len() {
            case.model.forward(&[&text[at..=at]], &mut cache, &mut parts).unwrap();
        }
        for (layer, spec) in case.model.layers().iter().enumerate() {
            let weights = whole.weights(layer, 0..text.len()).unwrap();
            if *spec == LayerSpec::State {
                assert!(weights.is_none());
                continue;
            }
            let weights = weights.unwrap();
            let sums = weights.sum_axis(-1, false).unwrap();
            let sums: Vec<f32> = sums.contiguous().unwrap().to_vec_exact().unwrap();
            assert!(sums.iter().all(|it| (it - 1.0).abs() < 1e-5), "{}", case.label);
            assert_eq!(weights.dim(2) as usize, text.len());
            if case.options.bound.is_some() {
                continue;
            }
            assert_eq!(weights.dim(3) as usize, text.len(), "{}", case.label);
            for at in 15..text.len() {
                let one = parts.weights(layer, at..at + 1).unwrap().unwrap();
                let columns = one.dim(3);
                let of_whole = weights
                    .try_index((
                        ..,
                        ..,
                        at as i32..at as i32 + 1,
                        at as i32 + 1 - columns..at as i32 + 1,
                    ))
                    .unwrap();
                let worst = one.subtract(&of_whole).unwrap().abs().unwrap().max(false).unwrap();
                assert!(
                    worst.try_item_exact::<f32>().unwrap() < 1e-5,
                    "{}: layer {layer}",
                    case.label
                );
            }
            let joined = parts.weights(layer, 10..text.len()).unwrap().unwrap();
            let columns = joined.dim(3);
            let of_whole =
                weights.try_index((.., .., 10.., text.len() as i32 - columns..)).unwrap();
            let worst = joined.subtract(&of_whole).unwrap().abs().unwrap().max(false).unwrap();
            assert!(worst.try_item_exact::<f32>().unwrap() < 1e-5, "{}: layer {layer}", case.label);
        }
    }
}

/// Fails to compile where a part cannot go to another thread.
#[test]
fn models_and_caches_go_to_other_threads() {
    fn send<T: Send>() {}
    send::<Decoder>();
    send::<KvCache>();
    send::<Box<dyn ResidualHook>>();

    let model = load("llama");
    let case = Case::new("llama", load("llama"), "dense", CacheOptions::new());
    let (text, next) = (ids(12, 1), [9_u32]);
    let expected = case.alone(&[&text[..], &next].concat());
    let mut cache = model.new_cache(1);
    model.hidden(&[&text], &mut cache, &mut NoHook).unwrap();
    cache.evaluate().unwrap();
    let thread = std::thread::spawn(move || {
        let logits = model.forward(&[&next], &mut cache, &mut NoHook).unwrap();
        let scores = logits.subtract(logsumexp_axis(&logits, -1, true).unwrap()).unwrap();
        scores.contiguous().unwrap().to_vec_exact::<f32>().unwrap()
    });
    case.near(&thread.join().unwrap(), &expected, "in another thread");
}
