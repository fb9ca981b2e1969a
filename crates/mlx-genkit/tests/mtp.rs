//! The model's own heads for further tokens as a helper: they change how fast something is said, never what.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{fs, path::Path};

use mlx_genkit::{
    ComputeDtype, Generation, GenerationConfig, HookPoint, Model, Request, ResidualHook, Seed,
    generation_config::OneOrMany,
    kv_cache::{PrefixStore, Step},
    mlx_models,
    mlx_rs::Array,
};
use serde_json::{Value, json};

const FOLDERS: [&str; 5] =
    ["mtp-glm4-moe", "mtp-deepseek-v3", "mtp-mellum", "mtp-qwen3_5", "mtp-qwen3_5-moe"];

fn load(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name);
    Model::load(folder, ComputeDtype::Float32).unwrap()
}

fn tiny(name: &str) -> Model {
    load(&format!("assisted/{name}"))
}

fn prompt() -> Vec<u32> {
    (0..60_u32).map(|it| 3 + it * it * 7 % 61).collect()
}

fn greedy(use_mtp: bool) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(30),
        do_sample: Some(false),
        use_mtp: Some(use_mtp),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    }
}

fn request<'a>(config: GenerationConfig) -> Request<'a> {
    Request::new(prompt()).config(config).seed(Seed::Torch(4))
}

fn tokens(generation: &Generation) -> &[u32] {
    &generation.sequences[0].tokens
}

/// Adds to the stream behind the first block, and counts the columns it is shown.
#[derive(Default)]
struct Push {
    by: f32,
    columns: usize,
    /// The first column of any pass after the prompt's.
    back_to: Option<usize>,
}

impl ResidualHook for Push {
    fn apply(&mut self, at: HookPoint, hidden: Array, step: &Step) -> mlx_models::Result<Array> {
        if at != HookPoint::ResidPost(0) {
            return Ok(hidden);
        }
        self.columns += step.count();
        if step.start() > 0 {
            let first = self.back_to.unwrap_or(usize::MAX);
            self.back_to = Some(first.min(step.start()));
        }
        Ok(hidden.add(Array::from_f32(self.by))?)
    }
}

#[test]
fn what_is_said_is_the_same_with_heads_and_without() {
    for name in FOLDERS {
        let model = tiny(name);
        for by in [0.0, 0.4] {
            let run = |use_mtp| {
                let hook = Push { by, ..Push::default() };
                model.generate(request(greedy(use_mtp)).hook(hook)).unwrap()
            };
            let (alone, helped) = (run(false), run(true));
            assert_eq!(tokens(&helped), tokens(&alone), "{name}, {by}");
            let acceptance = helped.acceptance.unwrap();
            assert!(acceptance.turns <= 30 && acceptance.guessed > 0, "{name}: {acceptance:?}");
        }
    }
}

/// How a prompt is cut into passes changes neither text nor guesses: the heads have read all of it.
#[test]
fn heads_read_a_prompt_in_chunks() {
    for name in FOLDERS {
        let model = tiny(name);
        let run = |chunk| {
            let config = GenerationConfig { prefill_chunk_size: chunk, ..greedy(true) };
            let generation = model.generate(request(config)).unwrap();
            (tokens(&generation).to_vec(), generation.acceptance)
        };
        let whole = run(None);
        for chunk in [1, 2, 5, 59] {
            assert_eq!(run(Some(chunk)), whole, "{name}, chunks of {chunk}");
        }
    }
}

/// On a hybrid too, no more than the tokens of a turn are read again where guesses fall.
#[test]
fn no_text_is_read_twice() {
    for name in FOLDERS {
        let model = tiny(name);
        let mut seen = Push::default();
        let helped = model.generate(request(greedy(true)).hook(&mut seen)).unwrap();
        let acceptance = helped.acceptance.unwrap();
        assert!(acceptance.accepted < acceptance.guessed, "{name}: no guess fell");
        assert_eq!(seen.back_to, Some(prompt().len()), "{name}");
        // What a turn checks is its guesses and a token before them; what stands of it may be read again.
        let most = prompt().len() + 2 * (acceptance.guessed + acceptance.turns);
        assert!(seen.columns <= most, "{name}: {} columns, at most {most}", seen.columns);
    }
}

/// Of a text that was read in an earlier request, the heads know what this one reads.
#[test]
fn a_cache_is_resumed_and_given_back() {
    for name in FOLDERS {
        let model = tiny(name);
        let alone = model.generate(request(greedy(false))).unwrap();
        let cache = model.read(Request::new(prompt()[..41].to_vec())).unwrap();
        let (helped, cache) =
            model.generate_with_cache(request(greedy(true)).cache(cache)).unwrap();
        assert_eq!(tokens(&helped), tokens(&alone), "{name}");
        let text = [prompt(), tokens(&alone).to_vec()].concat();
        assert_eq!(cache.tokens(0), text[..text.len() - 1], "{name}");
    }
}

/// A store of beginnings changes nothing, draws included: heads have to see every token.
#[test]
fn a_prefix_store_changes_nothing() {
    let model = tiny("mtp-glm4-moe");
    let drawn = || GenerationConfig { do_sample: Some(true), ..greedy(true) };
    let long: Vec<u32> = (0..6).flat_map(|_| prompt()).collect();
    let run = |store: Option<&PrefixStore>| {
        let asked = Request::new(long.clone()).config(drawn()).seed(Seed::Torch(9));
        let asked = match store {
            Some(store) => asked.prefix_store(store),
            None => asked,
        };
        tokens(&model.generate(asked).unwrap()).to_vec()
    };
    let store = PrefixStore::new(1 << 20);
    let (first, second) = (run(Some(&store)), run(Some(&store)));
    assert_eq!((&first, &second), (&run(None), &run(None)));
}

/// A copy of a folder, with a tensor more, under `mtp`.
fn with_left_out_heads(name: &str) -> tempfile::TempDir {
    let of = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name);
    let folder = tempfile::tempdir().unwrap();
    fs::copy(of.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = fs::read(of.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, numbers) = bytes[8..].split_at(length);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let offsets = [numbers.len(), numbers.len() + 4];
    header["mtp.norm.weight"] = json!({"dtype": "F32", "shape": [1], "data_offsets": offsets});
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    let edited = [&length[..], header.as_bytes(), numbers, &[0; 4]].concat();
    fs::write(folder.path().join("model.safetensors"), edited).unwrap();
    folder
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |model: &Model, request: Request<'_>, words: &[&str]| {
        let error = model.generate(request).unwrap_err().to_string();
        assert!(words.iter().all(|it| error.contains(it)), "{error}");
    };
    for name in ["llama", "glm4-moe", "mellum", "qwen3-next"] {
        let words = ["`use_mtp` is true, but", name, "no multi-token-prediction heads"];
        refused(&load(&format!("models/{name}")), request(greedy(true)), &words);
    }
    let folder = with_left_out_heads("models/nemotron-h");
    let model = Model::load(folder.path(), ComputeDtype::Float32).unwrap();
    refused(
        &model,
        request(greedy(true)),
        &["heads of nemotron_h models", "`mtp`", "not supported"],
    );
    let model = tiny("mtp-mellum");
    let beams = GenerationConfig { num_beams: Some(2), ..greedy(true) };
    refused(&model, request(beams), &["`use_mtp` is not available with beam search"]);
    let two = Request::batch([prompt(), prompt()]).config(greedy(true));
    refused(&model, two, &["more than one prompt is not available with assisted decoding"]);
    let again = GenerationConfig { use_cache: Some(false), ..greedy(true) };
    refused(&model, request(again), &["`use_cache` = false is not available"]);
}
