//! Rows of one batch under adapters of their own: whatever the mode, each gives the tokens of the row
//! alone, and those of a model that has the adapter and no other.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::{Path, PathBuf};

use mlx_genkit::{
    AdapterChoice, Batch, BatchOutcome, ComputeDtype, GenerationConfig, Model, Prompt, Request,
    Sequence,
    generation_config::{Kwargs, OneOrMany},
    kv_cache::PrefixStore,
    mlx_models::Decoder,
    mlx_rs::Array,
    training::{AdapterFormat, LoraConfig, add_adapter, attach_lora, save_adapter},
};
use serde_json::{Value, json};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

fn tiny(name: &str) -> Model {
    Model::load(folder(name), ComputeDtype::Float32).unwrap()
}

/// Writes an adapter that changes a model's answers.
fn write(model: &str, to: &Path, config: &LoraConfig) {
    let mut decoder = Decoder::load(folder(model), ComputeDtype::Float32).unwrap();
    attach_lora(&mut decoder, config).unwrap();
    decoder
        .visit_parameters_mut(|it| {
            if !it.path.ends_with("lora_B.weight") {
                return Ok(None);
            }
            let key = mlx_genkit::mlx_rs::random::key(config.seed + it.path.len() as u64)?;
            let noise =
                mlx_genkit::mlx_rs::random::normal::<f32>(it.array.shape(), None, None, &key)?;
            Ok(Some(noise.multiply(Array::from_f32(0.2))?))
        })
        .unwrap();
    save_adapter(&decoder, to, AdapterFormat::Peft, model).unwrap();
}

/// Three adapters of unlike ranks, scales, products and layers, and the model with all of them by name.
fn adapted(name: &str, targets: [&[&str]; 3], to: &Path) -> Model {
    let mut model = tiny(name);
    let ranks = [(2, 2.0), (5, 10.0), (3, 4.0)];
    for (at, ((rank, alpha), targets)) in ranks.into_iter().zip(targets).enumerate() {
        let folder = to.join(["one", "two", "three"][at]);
        let config = LoraConfig {
            rank,
            alpha,
            targets: targets.iter().map(|it| (*it).to_owned()).collect(),
            seed: 10 * at as u64,
            ..LoraConfig::default()
        };
        write(name, &folder, &config);
        model.load_named_adapter(["one", "two", "three"][at], &folder).unwrap();
    }
    model
}

fn choices() -> Vec<AdapterChoice> {
    vec![
        "one".into(),
        "two".into(),
        AdapterChoice::none(),
        "three".into(),
        AdapterChoice::from("one").and("three", 0.5),
    ]
}

fn prompts() -> Vec<Vec<u32>> {
    vec![
        vec![5, 9, 40, 7, 7, 61, 7, 9],
        (1..14).collect(),
        vec![30, 2, 7],
        vec![8, 8, 3, 52],
        vec![61, 40, 9, 2, 5],
    ]
}

fn request<'a>(prompts: &[Vec<u32>], fields: &Value) -> Request<'a> {
    let config = GenerationConfig {
        do_sample: Some(false),
        max_new_tokens: Some(10),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        pad_token_id: Some(0),
        ..GenerationConfig::default()
    };
    let prompts = prompts.iter().map(|it| Prompt::from(it.clone()));
    Request::batch(prompts).config(config).overrides(Kwargs::from_json(fields).unwrap())
}

fn tokens(sequences: &[Sequence]) -> Vec<Vec<u32>> {
    sequences.iter().map(|it| it.tokens.clone()).collect()
}

/// The answers of a model on which the adapter is set for good, where a choice is of one or none.
fn of_model_with(name: &str, choice: &str, to: &Path, prompt: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let mut model = tiny(name);
    for part in choice.split(" + ").filter(|it| *it != "no adapter") {
        // Half of an adapter is one with half its alpha.
        let (factor, part) =
            part.split_once(' ').map_or((1.0, part), |(f, p)| (f.parse().unwrap(), p));
        let copy = tempfile::tempdir().unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(to.join(part).join(file), copy.path().join(file)).unwrap();
        }
        let config = copy.path().join("adapter_config.json");
        let mut fields: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        fields["lora_alpha"] = json!(fields["lora_alpha"].as_f64().unwrap() * factor);
        std::fs::write(&config, fields.to_string()).unwrap();
        add_adapter(model.decoder_mut(), copy.path()).unwrap();
    }
    tokens(&model.generate(request(prompt, &json!({}))).unwrap().sequences)
}

const ALL: [&[&str]; 3] = [&[], &["q_proj", "v_proj"], &["o_proj", "down_proj"]];

#[test]
fn rows_of_a_batch_run_under_their_own_adapters() {
    for (name, targets) in [
        ("llama", ALL),
        ("llama-q4", ALL),
        ("gemma2", ALL),
        ("qwen3-moe", [&[][..], &["q_proj"], &["o_proj"]]),
        ("granite-hybrid", [&[][..], &["in_proj"], &["out_proj"]]),
        ("lfm2", [&[][..], &["in_proj"], &["out_proj"]]),
        ("gemma4", [&[][..], &["q_proj"], &["o_proj"]]),
        ("gemma3n", [&[][..], &["q_proj"], &["o_proj"]]),
        ("deepseek-v3", [&["q_b_proj", "o_proj"][..], &["q_a_proj"], &["o_proj"]]),
    ] {
        let to = tempfile::tempdir().unwrap();
        let model = adapted(name, targets, to.path());
        let (prompts, choices) = (prompts(), choices());
        for (mode, fields) in [
            ("greedy", json!({})),
            (
                "two sequences",
                json!({"num_return_sequences": 2, "do_sample": true, "temperature": 1e-6}),
            ),
            ("chunks", json!({"prefill_chunk_size": 3})),
            ("no cache", json!({"use_cache": false})),
            ("beams", json!({"num_beams": 3, "num_return_sequences": 2})),
            ("guidance", json!({"guidance_scale": 1.5})),
            ("guided beams", json!({"num_beams": 2, "guidance_scale": 1.5})),
            ("contrastive search", json!({"penalty_alpha": 0.6, "top_k": 4})),
            ("DoLa", json!({"dola_layers": "low"})),
        ] {
            let state = ["granite-hybrid", "lfm2"].contains(&name);
            if mode == "contrastive search" && (state || name.starts_with("gemma")) {
                continue;
            }
            // Of three layers, none is low.
            if mode == "DoLa" && !["llama", "llama-q4", "gemma2", "qwen3-moe"].contains(&name) {
                continue;
            }
            let asked = request(&prompts, &fields).adapters(choices.clone());
            let together = tokens(&model.generate(asked).unwrap().sequences);
            let each = together.len() / prompts.len();
            let mut moved = 0;
            for (row, found) in together.chunks(each).enumerate() {
                let prompt = std::slice::from_ref(&prompts[row]);
                let asked = request(prompt, &fields);
                let bare = tokens(&model.generate(asked).unwrap().sequences);
                let asked = request(prompt, &fields).adapter(choices[row].clone());
                let alone = tokens(&model.generate(asked).unwrap().sequences);
                assert_eq!(found, alone, "{name}, {mode}, row {row}");
                moved += usize::from(bare != alone);
                if mode == "greedy" {
                    let choice = choices[row].to_string();
                    let expected = of_model_with(name, &choice, to.path(), prompt);
                    assert_eq!(found, expected, "{name}: {choice}");
                }
            }
            assert!(moved >= 3, "{name}, {mode}: adapters that change nothing test nothing");
        }
    }
}

#[test]
fn requests_with_unlike_adapters_share_the_passes_of_a_batch() {
    let to = tempfile::tempdir().unwrap();
    let model = adapted("llama", ALL, to.path());
    let mut batch = Batch::new(&model);
    let mut expected = Vec::new();
    let mut answers = Vec::new();
    for (row, choice) in choices().into_iter().enumerate() {
        let prompt = &prompts()[row..=row];
        let fields = json!({"max_new_tokens": 6 + row});
        let alone = model.generate(request(prompt, &fields).adapter(choice.clone())).unwrap();
        expected.push(tokens(&alone.sequences));
        assert_eq!(batch.join(request(prompt, &fields).adapter(choice)).unwrap(), row);
        // Others are under way when it joins.
        answers.extend(batch.step().unwrap());
    }
    // One request with rows of two kinds among them.
    let both = |it: Request<'static>| it.adapters([Some("two"), None]);
    let alone = model.generate(both(request(&prompts()[..2], &json!({})))).unwrap();
    expected.push(tokens(&alone.sequences));
    batch.join(both(request(&prompts()[..2], &json!({})))).unwrap();
    while !batch.is_empty() {
        answers.extend(batch.step().unwrap());
    }
    let mut finished = 0;
    for event in answers {
        if let BatchOutcome::Finished(generation) = event.outcome {
            assert_eq!(tokens(&generation.sequences), expected[event.id], "request {}", event.id);
            finished += 1;
        }
    }
    assert_eq!(finished, 6);
}

#[test]
fn helpers_and_caches_know_the_adapter() {
    let to = tempfile::tempdir().unwrap();
    let model = adapted("llama", ALL, to.path());
    let prompt = &prompts()[..1];
    let fields = json!({});
    let alone = model.generate(request(prompt, &fields).adapter("two")).unwrap();
    for fields in [json!({"prompt_lookup_num_tokens": 3}), json!({"assistant_early_exit": 1})] {
        let found = model.generate(request(prompt, &fields).adapter("two")).unwrap();
        assert_eq!(tokens(&found.sequences), tokens(&alone.sequences), "{fields}");
    }

    // A cache that was filled under one is not continued under another, or under none.
    let mut stream = model
        .stream(request(prompt, &fields).adapter("one").cache(model.decoder().new_cache(1)))
        .unwrap();
    stream.by_ref().try_for_each(|it| it.map(drop)).unwrap();
    let cache = stream.finish_with_cache().unwrap().1;
    for choice in [None, Some("two")] {
        let asked = request(prompt, &fields).adapter(choice).cache(cache.fork());
        let error = model.generate(asked).unwrap_err().to_string();
        assert!(error.contains("adapters one × 1"), "{error}");
    }
    model.generate(request(prompt, &fields).adapter("one").cache(cache.fork())).unwrap();

    // Prompts share what they have in common with those under the same adapter only.
    let store = PrefixStore::new(64 << 20);
    let long: Vec<Vec<u32>> = vec![(0..300).map(|it| it % 60 + 1).collect()];
    let mut cached = Vec::new();
    for choice in [None, Some("one"), Some("two"), Some("one"), None] {
        let expected = model.generate(request(&long, &fields).adapter(choice)).unwrap();
        let asked = request(&long, &fields).adapter(choice).prefix_store(&store);
        let found = model.generate(asked).unwrap();
        assert_eq!(tokens(&found.sequences), tokens(&expected.sequences));
        cached.push(found.cached_tokens);
    }
    assert_eq!(cached, [0, 0, 0, 256, 256]);

    let scored = |choice: Option<&str>| {
        let prompt = Prompt::from(prompts()[1].clone());
        model.score(Request::new(prompt).adapter(choice)).unwrap().sum()
    };
    assert_ne!(scored(None), scored(Some("one")));
}

#[test]
fn what_rows_cannot_have_is_refused_by_name() {
    let to = tempfile::tempdir().unwrap();
    let mut model = adapted("llama", ALL, to.path());
    let asked = request(&prompts()[..1], &json!({})).adapter("four");
    let error = model.generate(asked).unwrap_err().to_string();
    assert!(error.contains("no adapter named `four` (it has: one, three, two)"), "{error}");
    let asked = request(&prompts()[..3], &json!({})).adapters(["one", "two"]);
    let error = model.generate(asked).unwrap_err().to_string();
    assert!(error.contains("2 adapters are chosen for 3 prompts"), "{error}");

    let error = model.load_named_adapter("one", to.path().join("two")).unwrap_err().to_string();
    assert!(error.contains("an adapter named `one` already"), "{error}");
    let dora = to.path().join("dora");
    write("llama", &dora, &LoraConfig { rank: 2, dora: true, ..LoraConfig::default() });
    let error = model.load_named_adapter("dora", &dora).unwrap_err().to_string();
    assert!(error.contains("adapter `dora` is DoRA"), "{error}");
    let table = to.path().join("table");
    write(
        "llama",
        &table,
        &LoraConfig { targets: vec!["lm_head".into()], ..LoraConfig::default() },
    );
    let error = model.load_named_adapter("table", &table).unwrap_err().to_string();
    assert!(error.contains("`lm_head`, outside the blocks"), "{error}");

    // What is computed with as a matrix has no rows.
    let to = tempfile::tempdir().unwrap();
    let model = adapted("deepseek-v3", [&["kv_b_proj"], &["o_proj"], &["o_proj"]], to.path());
    let asked = request(&prompts()[..2], &json!({})).adapters(["two", "three"]);
    model.generate(asked).unwrap();
    let error = model.generate(request(&prompts()[..1], &json!({})).adapter("one")).unwrap_err();
    assert!(error.to_string().contains("kv_b_proj` is computed with as a matrix"), "{error}");
}
