//! Caches by request: their kinds, their files, and what prompts have in common.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlx_genkit::{
    Batch, BatchOutcome, ComputeDtype, ErrorKind, Generation, GenerationConfig, HookPoint, Model,
    NoHook, Prompt, Recording, Request, Seed,
    generation_config::OneOrMany,
    kv_cache::{KvCache, PrefixStore},
    mlx_rs::ops::logsumexp_axis,
    steering::{Injection, Steering, SteeringVectors},
};

mod families;

use families::{FAMILIES, tiny};

fn ids(len: usize, salt: u32) -> Vec<u32> {
    (0..len as u32).map(|it| (it * it * 7 + it * 37 + salt * 53) % 130 + 3).collect()
}

fn prompts(least: usize) -> Vec<Vec<u32>> {
    vec![ids(least + 4, 1), ids(least + 17, 2), ids(least + 11, 3)]
}

fn config(draw: bool, eos: &[u32]) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(12),
        do_sample: Some(draw),
        temperature: Some(1.3),
        eos_token_id: Some(OneOrMany::Many(eos.iter().map(|&it| it.into()).collect())),
        pad_token_id: Some(0),
        ..GenerationConfig::default()
    }
}

fn run(model: &Model, prompts: &[Vec<u32>], config: GenerationConfig) -> Generation {
    let prompts = prompts.iter().map(|it| Prompt::from(it.clone()));
    model.generate(Request::batch(prompts).config(config).seed(Seed::Fast(7))).unwrap()
}

fn tokens(generation: &Generation) -> Vec<&[u32]> {
    generation.sequences.iter().map(|it| it.tokens.as_slice()).collect()
}

/// Every kind of cache that a request can ask for, with the fields that do.
fn kinds() -> Vec<(&'static str, GenerationConfig)> {
    let none = GenerationConfig::default();
    let packed = |bits| GenerationConfig {
        kv_bits: Some(bits),
        kv_group_size: Some(32),
        ..GenerationConfig::default()
    };
    let bounded = |kept: GenerationConfig| GenerationConfig {
        max_kv_size: Some(13),
        kv_keep: Some(3),
        ..kept
    };
    vec![
        ("bounded", bounded(none.clone())),
        ("2 bits", packed(2)),
        ("4 bits, bounded", bounded(packed(4))),
        ("static", GenerationConfig { cache_implementation: Some("static".into()), ..none }),
    ]
}

/// The fields of `config` under those of a kind of cache.
fn kept_as(kind: &GenerationConfig, config: GenerationConfig) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: config.max_new_tokens,
        do_sample: config.do_sample,
        temperature: config.temperature,
        eos_token_id: config.eos_token_id,
        pad_token_id: config.pad_token_id,
        ..kind.clone()
    }
}

#[test]
fn a_row_of_any_kind_of_cache_is_continued_as_it_is_alone() {
    // Heads of 32 numbers, and layers that have a window beside those that are bounded.
    let model = tiny("gemma3-q4");
    let prompts = prompts(0);
    let plain = run(&model, &prompts, config(false, &[]));
    for (what, fields) in kinds() {
        let config = || kept_as(&fields, config(false, &[]));
        let said = run(&model, &prompts, config());
        assert_eq!(what == "static", tokens(&said) == tokens(&plain), "{what} is not felt");
        let mut batch = Batch::new(&model);
        for (prompt, row) in prompts.iter().zip(&said.sequences) {
            let one = std::slice::from_ref(prompt);
            let alone = run(&model, one, config());
            assert_eq!(alone.sequences[0].tokens, row.tokens, "{what}: alone");
            let chunked = GenerationConfig { prefill_chunk_size: Some(4), ..config() };
            assert_eq!(tokens(&run(&model, one, chunked))[0], row.tokens, "{what}: chunks");
            let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(4), ..config() };
            assert_eq!(tokens(&run(&model, one, lookup))[0], row.tokens, "{what}: lookup");
            let request = Request::new(prompt.clone()).config(config());
            let drafted = model.generate(request.assistant(&model)).unwrap();
            assert_eq!(tokens(&drafted)[0], row.tokens, "{what}: a draft");
            // Joins the others' passes where it can, two tokens after the last.
            batch.join(Request::new(prompt.clone()).config(config())).unwrap();
            batch.step().unwrap();
            batch.step().unwrap();
        }
        // A request with another kind of cache does not share their passes, but the batch.
        batch.join(Request::new(prompts[0].clone()).config(plain_config())).unwrap();
        let mut answers = vec![Vec::new(); 4];
        while !batch.is_empty() {
            for event in batch.step().unwrap() {
                if let BatchOutcome::Finished(it) = event.outcome {
                    answers[event.id] = it.sequences[0].tokens.clone();
                }
            }
        }
        assert_eq!(answers[..3], tokens(&said), "{what}: in a batch");
        assert_eq!(answers[3], tokens(&plain)[0], "{what}: beside a batch");
        let beams = |prompts: &[Vec<u32>]| {
            let config = GenerationConfig { num_beams: Some(3), ..config() };
            run(&model, prompts, config)
        };
        let together = beams(&prompts);
        let alone = beams(&prompts[..1]);
        assert_eq!(tokens(&alone)[0], tokens(&together)[0], "{what}: beams");
    }
}

/// A prompt that is read in one pass is seen as it is, and packed from then on: guesses change nothing.
#[test]
fn guesses_behind_a_prompt_that_is_packed_late_are_judged_as_by_plain_decoding() {
    let model = tiny("gemma3-q4");
    let prompts = prompts(0);
    let prompt = &prompts[1..2];
    let mut all = vec![tokens(&run(&model, prompt, config(false, &[]))).concat()];
    for start in [0, 9, 17] {
        let config = || GenerationConfig {
            kv_bits: Some(2),
            kv_group_size: Some(32),
            quantized_kv_start: Some(start),
            ..config(false, &[])
        };
        let plain = run(&model, prompt, config());
        let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(4), ..config() };
        assert_eq!(tokens(&run(&model, prompt, lookup)), tokens(&plain), "lookup, {start}");
        let request = Request::new(prompt[0].clone()).config(config());
        let drafted = model.generate(request.assistant(&model)).unwrap();
        assert_eq!(tokens(&drafted), tokens(&plain), "a draft, {start}");
        all.push(tokens(&plain).concat());
    }
    // Dense, packed at once, and packed behind the prompt.
    assert!(all[0] != all[1] && all[1] != all[2] && all[2] == all[3], "{all:?}");
}

/// Two clusters that began with the same text: what one reads changes no bit of the other's logits, unless
/// they have one cache.
#[test]
fn what_one_cache_reads_reaches_no_logit_of_another() {
    for name in ["llama", "gemma3", "qwen3_5"] {
        let model = tiny(name);
        let (told, a) = (ids(9, 1), ids(14, 2));
        let logits = |b: &[u32], is_shared: bool| {
            let begun = model.read(Request::new(told.clone())).unwrap();
            let text_of_b = [&told[..], b].concat();
            let read = Request::new(text_of_b.clone()).cache(begun.fork());
            let other = model.read(read).unwrap();
            let (cache, before) =
                if is_shared { (other, text_of_b) } else { (begun, told.clone()) };
            let config = GenerationConfig { output_logits: Some(true), ..config(false, &[]) };
            let request = Request::new([before, a.clone()].concat()).config(config).cache(cache);
            let mut sequences = model.generate(request).unwrap().sequences;
            let logits = sequences.swap_remove(0).recorded.logits;
            logits.iter().flatten().map(|it| it.to_bits()).collect::<Vec<u32>>()
        };
        let (one, two) = (ids(11, 3), ids(11, 4));
        assert_eq!(logits(&one, false), logits(&two, false), "{name}");
        assert_ne!(logits(&one, true), logits(&two, true), "{name}");
    }
}

fn plain_config() -> GenerationConfig {
    config(false, &[])
}

#[test]
fn a_bounded_cache_holds_a_long_conversation_in_constant_memory() {
    // Of a context of 128 tokens.
    let model = tiny("qwen2");
    let config = || GenerationConfig {
        max_kv_size: Some(1024),
        max_new_tokens: Some(4),
        ..config(false, &[])
    };
    let mut cache = None;
    let mut text = ids(4, 1);
    let (mut most, mut window) = (0, 0);
    for turn in 0..20 {
        text.extend(ids(500, turn));
        let mut request = Request::new(text.clone()).config(config());
        if let Some(cache) = cache.take() {
            request = request.cache(cache);
        }
        let mut stream = model.stream(request).unwrap();
        stream.by_ref().for_each(|it| text.push(it.unwrap().token));
        let held = stream.finish_with_cache().unwrap().1;
        if turn < 10 {
            (most, window) = (most.max(held.allocated_bytes()), held.live_bytes());
        } else {
            assert!(held.allocated_bytes() <= most, "turn {turn}: {}", held.allocated_bytes());
            assert_eq!(held.live_bytes(), window, "turn {turn}");
        }
        cache = Some(held);
    }
    assert!(text.len() > 10_000, "{}", text.len());
    // What the last turn says is what it says after one pass over all of the text.
    let prompt = text[..text.len() - 4].to_vec();
    let again = model.generate(Request::new(prompt).config(config())).unwrap();
    assert_eq!(again.sequences[0].tokens, text[text.len() - 4..]);
    let other = GenerationConfig { max_kv_size: Some(1025), ..config() };
    let refused = model.plan(Request::new(text).config(other).cache(cache.unwrap())).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the cache to resume keeps the first 4 of a text and the newest, 1024 in all, but \
         `max_kv_size` asks for one that keeps the first 4 of a text and the newest, 1025 in all"
    );
}

#[test]
fn a_cache_that_cannot_be_is_refused_by_field() {
    let model = tiny("llama");
    for (fields, field, expected) in [
        (
            serde_json::json!({"kv_bits": 4}),
            "kv_bits",
            "`kv_bits` needs groups of 32 or 64 numbers, which do not divide the 8 numbers that a \
             head of",
        ),
        (
            serde_json::json!({"kv_bits": 4, "kv_group_size": 64}),
            "kv_group_size",
            "`kv_group_size` is 64, which does not divide the 8 numbers that a head of",
        ),
        (
            serde_json::json!({"kv_bits": 7}),
            "kv_bits",
            "`kv_bits` must be 2, 3, 4, 5, 6 or 8, but is 7",
        ),
        (
            serde_json::json!({"max_kv_size": 4}),
            "max_kv_size",
            "`max_kv_size` is 4, but the first 4 tokens stay visible (`kv_keep`), so it must be \
             larger",
        ),
        (
            serde_json::json!({"cache_implementation": "quantized", "cache_config": {"nbits": 4, "axis_key": 1}}),
            "cache_config",
            "`cache_config` holds \"axis_key\", which a quantized cache here does not have",
        ),
        (
            serde_json::json!({"cache_implementation": "quantized", "cache_config": {"nbits": 4}, "kv_bits": 8}),
            "cache_config",
            "`cache_config` holds 4 for \"nbits\", which contradicts `kv_bits`",
        ),
        (
            serde_json::json!({"cache_implementation": "paged"}),
            "cache_implementation",
            "`cache_implementation` is \"paged\", but this kind of cache is not implemented yet",
        ),
    ] {
        let config = GenerationConfig::from_json(&fields).unwrap();
        let error = model.plan(Request::new(ids(4, 1)).config(config)).unwrap_err();
        assert_eq!(error.field(), Some(field), "{error}");
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    // Heads that differ by layer, and latents.
    for (name, expected) in [
        (
            "gemma4",
            "the 8 numbers of a head's keys in layer 0 of {model}, whose layers keep 8, 12 numbers per \
             head",
        ),
        (
            "deepseek-v2",
            "the 10 numbers of a head's keys in layer 0 of {model}, whose layers keep 4, 10 \
             numbers per head",
        ),
    ] {
        let config = GenerationConfig { kv_bits: Some(4), ..GenerationConfig::default() };
        let model = tiny(name);
        let error = model.plan(Request::new(vec![3, 5]).config(config)).unwrap_err();
        let expected = expected.replace("{model}", model.name());
        let refused = "`kv_bits` needs groups of 32 or 64 numbers, which do not divide ";
        assert_eq!(error.field(), Some("kv_bits"));
        assert_eq!(error.to_string(), format!("{refused}{expected}"));
    }
    // HF's name and mlx-lm's field are one thing.
    let model = tiny("qwen3-q8");
    let by_name = serde_json::json!({
        "cache_implementation": "quantized", "max_new_tokens": 9, "do_sample": false,
        "cache_config": {"nbits": 4, "q_group_size": 32, "backend": "quanto"},
    });
    let by_field = serde_json::json!({"kv_bits": 4, "max_new_tokens": 9, "do_sample": false});
    let said = [by_name, by_field].map(|it| {
        let config = GenerationConfig::from_json(&it).unwrap();
        model.generate(Request::new(ids(30, 1)).config(config)).unwrap()
    });
    assert_eq!(tokens(&said[0]), tokens(&said[1]));
    let warned: Vec<&str> = said[0].warnings.iter().map(|it| it.field()).collect();
    assert_eq!(warned, ["cache_config"]);
}

fn steering(model: &Model, alpha: f64, positions: &str) -> Steering {
    let width = model.decoder().hidden_size();
    let one = vec![1.0 / (width as f32).sqrt(); width];
    let ones = SteeringVectors::new([(HookPoint::ResidPost(0), one)]).unwrap();
    let vectors = ones.random_like(3).unwrap();
    Injection::new(vectors, alpha).positions(positions.parse().unwrap()).into()
}

/// A request that records its logits, and how many tokens of its prompt were found.
fn asked(
    model: &Model,
    prompt: &[u32],
    fields: &GenerationConfig,
    (store, steering): (Option<&PrefixStore>, Option<Steering>),
) -> (Vec<Vec<u32>>, usize) {
    let config = GenerationConfig {
        output_logits: Some(true),
        return_dict_in_generate: Some(true),
        max_new_tokens: Some(3),
        ..kept_as(fields, plain_config())
    };
    let mut request = Request::new(prompt.to_vec()).config(config);
    if let Some(store) = store {
        request = request.prefix_store(store);
    }
    if let Some(steering) = steering {
        request = request.steering(steering);
    }
    let generation = model.generate(request).unwrap();
    let logits = generation.sequences[0].recorded.logits.iter();
    let bits = logits.map(|it| it.iter().map(|it| it.to_bits()).collect()).collect();
    (bits, generation.cached_tokens)
}

/// Every tiny model there is.
fn all_models() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
    let entries = std::fs::read_dir(folder).unwrap().map(|it| it.unwrap());
    let folders = entries.filter(|it| it.path().is_dir());
    folders.map(|it| it.file_name().into_string().unwrap()).collect()
}

#[test]
fn a_prompt_that_was_found_is_continued_as_one_that_was_read_to_the_bit() {
    let names = all_models();
    assert!(names.len() > FAMILIES.len(), "{names:?}");
    for name in names {
        let model = tiny(&name);
        if model.decoder().original_context().is_some() {
            // Its rotation depends on the length of the whole, so that nothing is shared.
            continue;
        }
        let (vocab, heads) = (model.decoder().vocab_size(), model.decoder().head_dims());
        let is_wide = heads.flatten().flatten().all(|it| it % 32 == 0);
        let ids = |len, salt| ids(len, salt).iter().map(|it| it % vocab as u32).collect::<Vec<_>>();
        for (kind, fields) in kinds() {
            if fields.kv_bits.is_some() && !is_wide {
                continue;
            }
            for steered in [None, Some("all")] {
                let what = format!("{name}, {kind}, {steered:?}");
                let ask = |prompt: &[u32], store: &PrefixStore| {
                    let steering = steered.map(|it| steering(&model, 4.0, it));
                    asked(&model, prompt, &fields, (Some(store), steering))
                };
                let folder = tempfile::tempdir().unwrap();
                let open =
                    || PrefixStore::new(64 << 20).with_folder(folder.path(), 1 << 30).unwrap();
                let store = open();
                let (first, second) = ([ids(270, 1), ids(20, 2)].concat(), ids(270, 1));
                let second = [second, ids(33, 3)].concat();
                let (_, found) = ask(&first, &store);
                assert_eq!(found, 0, "{what}");
                let blocks = store.counters().blocks as u64;
                let (logits, found) = ask(&second, &store);
                assert_eq!(found, 256, "{what}");
                let (alone, found) = ask(&second, &PrefixStore::new(64 << 20));
                assert_eq!(found, 0, "{what}");
                assert!(logits == alone, "{what}");
                // The very prompt again, of which the last token is read.
                assert!(ask(&second, &store) == (alone.clone(), 256), "{what}");
                // Another process finds it in the folder.
                let later = open();
                assert!(ask(&second, &later) == (alone, 256), "{what}: from the folder");
                assert_eq!(later.counters().loaded, blocks, "{what}");
            }
        }
    }
}

#[test]
fn of_a_prompt_that_begins_like_another_only_the_rest_is_read() {
    let model = Model::bundled(ComputeDtype::Auto).unwrap();
    let store = PrefixStore::new(1 << 30);
    let read = |salt| {
        let prompt = [ids(2000, 1), ids(20, salt)].concat();
        let config = GenerationConfig { max_new_tokens: Some(1), ..plain_config() };
        let request = Request::new(prompt).config(config).prefix_store(&store);
        2020 - model.generate(request).unwrap().cached_tokens
    };
    assert_eq!((read(2), read(3)), (2020, 36));
}

#[test]
fn what_is_found_was_read_under_what_is_asked() {
    let model = tiny("llama");
    let fields = GenerationConfig::default();
    let store = PrefixStore::new(64 << 20);
    let prompt = ids(600, 4);
    let ask =
        |store: &PrefixStore, steering| asked(&model, &prompt, &fields, (Some(store), steering));
    let of = |alpha, positions| Some(steering(&model, alpha, positions));
    // Steering that begins with the answer shares its prompts with all others, whatever their strength.
    assert_eq!(ask(&store, None).1, 0);
    for alpha in [1.0, 6.0] {
        let (logits, found) = ask(&store, of(alpha, "generation"));
        assert_eq!(found, 576);
        let (alone, _) = ask(&PrefixStore::new(64 << 20), of(alpha, "generation"));
        assert!(logits == alone, "{alpha}");
    }
    // Steering of the prompt does not, and one that begins within it shares what precedes.
    assert_eq!(ask(&store, of(1.0, "all")).1, 0);
    assert_eq!(ask(&store, of(2.0, "all")).1, 0);
    assert_eq!(ask(&store, of(1.0, "all")).1, 576);
    assert_eq!(ask(&store, of(1.0, "prompt[300..]")).1, 256);
    assert_eq!(ask(&store.salted("someone else"), None).1, 0);
    let bounded = GenerationConfig { max_kv_size: Some(40), ..GenerationConfig::default() };
    assert_eq!(asked(&model, &prompt, &bounded, (Some(&store), None)).1, 0);
    assert_eq!(ask(&store, None).1, 576);
    let other = tiny("mistral");
    assert_eq!(asked(&other, &prompt, &fields, (Some(&store), None)).1, 0);
    assert_eq!(store.counters().found as usize, 576 * 4 + 256);
    // An observer has to see every token.
    let mut recording = Recording::new([HookPoint::ResidPost(0)]);
    let request = Request::new(prompt.clone()).config(plain_config()).prefix_store(&store);
    assert_eq!(model.generate(request.hook(&mut recording)).unwrap().cached_tokens, 0);
    // A batch finds the same, whatever it does besides.
    let mut batch = Batch::new(&model);
    for _ in 0..2 {
        let request = Request::new(prompt.clone()).config(plain_config());
        batch.join(request.prefix_store(&store)).unwrap();
    }
    while !batch.is_empty() {
        for event in batch.step().unwrap() {
            if let BatchOutcome::Finished(it) = event.outcome {
                assert_eq!(it.cached_tokens, 576);
            }
        }
    }
}

#[test]
fn a_cache_goes_through_a_file_with_everything_that_it_depends_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let (text, longer) = (ids(40, 1), [ids(40, 1), ids(5, 2)].concat());
    for (kind, fields) in kinds() {
        let model = tiny("gemma3-q4");
        let config = || kept_as(&fields, plain_config());
        let steered = steering(&model, 4.0, "all");
        let request = |text: &[u32]| Request::new(text.to_vec()).config(config());
        let cache = model.read(request(&text).steering(steered.clone())).unwrap();
        model.save_cache(&cache, &path).unwrap();
        let loaded = tiny("gemma3-q4").load_cache(&path).unwrap();
        assert_eq!(loaded.state_hash().unwrap(), cache.state_hash().unwrap(), "{kind}");
        let [from_file, from_memory] = [loaded, cache].map(|it| {
            model.generate(request(&longer).steering(steered.clone()).cache(it)).unwrap()
        });
        assert_eq!(tokens(&from_file), tokens(&from_memory), "{kind}");
        assert_eq!(from_file.cached_tokens, 40, "{kind}");
        let refused = |it: Request<'_>| model.generate(it).unwrap_err().to_string();
        let again = || model.load_cache(&path).unwrap();
        let error = refused(request(&longer).cache(again()));
        assert!(error.starts_with("the cache was filled under the steering"), "{error}");
        let other = GenerationConfig { max_kv_size: Some(99), ..config() };
        let error = refused(Request::new(longer.clone()).config(other).cache(again()));
        assert!(error.starts_with("the cache to resume keeps "), "{error}");
    }
    for other in ["llama", "gemma3"] {
        let error = tiny(other).load_cache(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request);
        assert!(error.to_string().contains("with other weights than those of"), "{error}");
    }
}

#[test]
fn a_file_of_mlx_lm_is_taken_up_by_the_text_that_it_is_of() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/caches/files/qwen2.safetensors");
    let model = tiny("qwen2");
    // As xtask/record/caches.py has it.
    let text: Vec<u32> = (0..40).map(|it| it * 7 % 131 + 3).collect();
    let longer = [&text[..], &[9, 44]].concat();
    let cache = model.load_cache_of(&path, &longer).unwrap();
    let request = || Request::new(longer.clone()).config(plain_config());
    let resumed = model.generate(request().cache(cache)).unwrap();
    assert_eq!(resumed.cached_tokens, 40);
    assert_eq!(tokens(&resumed), tokens(&model.generate(request()).unwrap()));

    let error = model.load_cache(&path).unwrap_err().to_string();
    assert!(error.ends_with("does not name its tokens, since mlx-lm writes none"), "{error}");
    let error = model.load_cache_of(&path, &text[..30]).unwrap_err().to_string();
    assert!(error.ends_with("holds 40 tokens, and the prompt has only 30"), "{error}");
    let other = ids(42, 5);
    let error = model.load_cache_of(&path, &other).unwrap_err().to_string();
    assert!(error.contains("is of another text than the prompt's first 40 tokens"), "{error}");
    assert!(tiny("llama").load_cache_of(&path, &other).is_err());
}

/// The turns of three clusters of each of the isolation examples, as texts.
fn clusters() -> Vec<[String; 3]> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/isolation");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    let texts = |path: &std::path::PathBuf| {
        let example: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut texts = [const { String::new() }; 3];
        for turn in example["turns"].as_array().unwrap() {
            let said = ["instruction", "content", "query"].map(|it| turn[it].as_str());
            let said = said.into_iter().flatten().next().unwrap();
            // Further clusters are left out.
            if let Some(text) = texts.get_mut(turn["cluster"].as_u64().unwrap() as usize - 1) {
                *text = format!("{text}{said}\n");
            }
        }
        texts
    };
    let texts = paths.iter().map(texts);
    texts.filter(|it| it.iter().all(|it| !it.is_empty())).collect()
}

/// How far the next-token distributions behind two texts are from those after one pass over both, when
/// their caches were put together and some tokens of the second read again. Prints what docs/caches.md says.
#[test]
fn the_more_of_a_text_is_read_anew_the_nearer_it_is_to_one_pass() {
    let model = Model::bundled(ComputeDtype::Float32).unwrap();
    let (decoder, tokenizer) = (model.decoder(), model.tokenizer().unwrap());
    let encode = |it: String| tokenizer.encode(&it, false).unwrap();
    let texts: Vec<[Vec<u32>; 3]> = clusters().into_iter().map(|it| it.map(encode)).collect();
    let read = |parts: &[&[u32]]| {
        let mut cache = decoder.new_cache(1);
        decoder.hidden(&[&parts.concat()], &mut cache, &mut NoHook).unwrap();
        cache
    };
    let scores = |mut cache: KvCache, text: &[u32]| -> Vec<f32> {
        let logits = decoder.forward(&[text], &mut cache, &mut NoHook).unwrap();
        let scores = logits.subtract(logsumexp_axis(&logits, -1, true).unwrap()).unwrap();
        scores.contiguous().unwrap().to_vec_exact().unwrap()
    };
    let best = |it: &[f32]| (0..it.len()).max_by(|a, b| it[*a].total_cmp(&it[*b]));
    let behind: usize = texts.iter().map(|it| it[1].len()).sum();
    println!("{} texts behind others, {behind} tokens in all", texts.len());
    let mut divergences = Vec::new();
    for again in [0, 1, 4, 16, 32, usize::MAX] {
        let (mut divergence, mut others, mut count, mut anew) = (0.0, 0, 0, 0);
        for [a, b, c] in &texts {
            let both = decoder.concat(&[&read(&[a]), &read(&[b])], again, &mut NoHook).unwrap();
            let (found, exact) = (scores(both, c), scores(read(&[a, b]), c));
            for (found, exact) in
                found.chunks(decoder.vocab_size()).zip(exact.chunks(decoder.vocab_size()))
            {
                let terms = found.iter().zip(exact).map(|(q, p)| f64::from(p.exp() * (p - q)));
                divergence += terms.sum::<f64>();
                others += usize::from(best(found) != best(exact));
                count += 1;
            }
            anew += again.min(b.len());
        }
        let mean = |it: f64| it / f64::from(count);
        println!(
            "| {again} | {:.2} | {:.4} | {:.3} |",
            anew as f64 / behind as f64,
            mean(divergence),
            mean(others as f64)
        );
        divergences.push(mean(divergence));
    }
    assert!(divergences.is_sorted_by(|a, b| a > b), "{divergences:?}");
    // Exact but for rounding.
    assert!(divergences[5].abs() < 1e-6 && divergences[0] > 0.01, "{divergences:?}");
}
