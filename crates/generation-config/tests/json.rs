//! Reading and writing: every message, the round trip, and JSON at random.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_generation_config::{
    Chat, ErrorKind, GenerationConfig, Kwargs, OneOrMany, Sources, SynthIdTextWatermarkingConfig,
    Watermarking, read_json,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn message(value: &Value) -> String {
    GenerationConfig::from_json(value).unwrap_err().to_string()
}

#[test]
fn json_is_read_as_python_writes_it() {
    let text = br#"{"a": [Infinity, -Infinity, NaN], "b\"Infinity": "NaN\\", "c": NaN}"#;
    let value = read_json(text).unwrap();
    let float = |name: &str| json!({"__float__": name});
    let expected = json!({"a": [float("Infinity"), float("-Infinity"), float("NaN")],
                          "b\"Infinity": "NaN\\", "c": float("NaN")});
    assert_eq!(value, expected);
    let config = GenerationConfig::from_json(&value).unwrap();
    assert_eq!(config.unknown.len(), 3);
    let time = read_json(br#"{"max_time": Infinity}"#).unwrap();
    assert_eq!(message(&time), "`max_time` must be a number, found the number Infinity");
    assert!(read_json(b"{\"a\": Infinity").unwrap_err().to_string().starts_with("is not valid"));
}

#[test]
fn a_wrong_type_is_told_in_one_sentence() {
    let long = "x".repeat(60);
    for (value, expected) in [
        (json!({"top_k": "a"}), "`top_k` must be an integer, found the string \"a\"".to_owned()),
        (json!({"top_k": 2.5}), "`top_k` must be an integer of 0 or more, found the number 2.5".to_owned()),
        (json!({"top_k": -1}), "`top_k` must be an integer of 0 or more, found the number -1".to_owned()),
        (json!({"top_p": true}), "`top_p` must be a number, found true".to_owned()),
        (json!({"do_sample": 1}), "`do_sample` must be true or false, found the number 1".to_owned()),
        (
            json!({"early_stopping": "always"}),
            "`early_stopping` must be true, false or \"never\", found the string \"always\"".to_owned(),
        ),
        (json!({"eos_token_id": [2, "a"]}), "`eos_token_id[1]` must be an integer, found the string \"a\"".to_owned()),
        (json!({"eos_token_id": {}}), "`eos_token_id` must be an integer, found an object".to_owned()),
        (json!({"bad_words_ids": [[1], 2]}), "`bad_words_ids[1]` must be a list, found the number 2".to_owned()),
        (
            json!({"sequence_bias": [[[1, null], 2.0]]}),
            "`sequence_bias[0][0][1]` must be an integer, found null".to_owned(),
        ),
        (
            json!({"sequence_bias": {"(1, 2)": 2.0}}),
            "`sequence_bias` must be a list, found an object".to_owned(),
        ),
        (
            json!({"exponential_decay_length_penalty": [1]}),
            "`exponential_decay_length_penalty` must be a list of two, found a list of length 1".to_owned(),
        ),
        (
            json!({"watermarking_config": {"bias": "much"}}),
            "`watermarking_config.bias` must be a number, found the string \"much\"".to_owned(),
        ),
        (
            json!({"watermarking_config": {"keys": [1]}}),
            "`watermarking_config.ngram_len` must be an integer, found null".to_owned(),
        ),
        (
            json!({"watermarking_config": {"bais": 1}}),
            "`watermarking_config.bais` must be left out, as no such key is known, found the number 1".to_owned(),
        ),
        (
            json!({"cache_implementation": long.as_str(), "transformers_version": 5}),
            "`transformers_version` must be a string, found the number 5".to_owned(),
        ),
        (
            json!({"max_time": long.as_str()}),
            format!("`max_time` must be a number, found the string {:?}...", &long[..40]),
        ),
        (json!([1]), "a generation config must be a JSON object, found a list of length 1".to_owned()),
    ] {
        assert_eq!(message(&value), expected);
    }
}

#[test]
fn a_wrong_value_names_field_and_value() {
    for (value, expected) in [
        (json!({"max_new_tokens": 0}), "`max_new_tokens` must be at least 1, but is 0"),
        (
            json!({"assistant_ensemble_weight": 1.0}),
            "`assistant_ensemble_weight` must be between 0 and 1, both excluded, but is 1",
        ),
        (
            json!({"num_return_sequences": 3}),
            "`num_return_sequences` is 3, but greedy search has a single answer: set `do_sample`",
        ),
        (
            json!({"num_return_sequences": 3, "num_beams": 2}),
            "`num_return_sequences` is 3, but must be at most `num_beams`, which is 2",
        ),
        (
            json!({"forced_eos_token_id": [2, 7], "suppress_tokens": [7, 3, 2]}),
            "`forced_eos_token_id` is [2, 7], all of it also in `suppress_tokens`",
        ),
        (json!({"streamer": null}), "`streamer` is an argument of `generate`, not a field"),
        (
            json!({"watermarking_config": {"keys": [1], "ngram_len": 5, "sampling_table_size": 1 << 25}}),
            "`watermarking_config`: `sampling_table_size` must be at most 2^24, but is 33554432",
        ),
    ] {
        let error = GenerationConfig::from_json(&value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Value);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_file_is_named() {
    let folder = std::env::temp_dir().join(format!("mlxgk-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("generation_config.json");
    let name = path.display().to_string();

    let error = GenerationConfig::from_file(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::File);
    assert!(error.to_string().starts_with(&format!("{name}: cannot be read (")));

    for (text, kind, starts) in [
        (&b"{\"top_k\": \"a\"}"[..], ErrorKind::Type, "`top_k` must be an integer, found"),
        (b"{\"top_k\": ", ErrorKind::Json, "is not valid JSON ("),
        (b"\xff\xfe", ErrorKind::Json, "is not valid JSON ("),
        (b"", ErrorKind::Json, "is not valid JSON ("),
        (b"[]", ErrorKind::Json, "a generation config must be a JSON object"),
        (b"{\"max_new_tokens\": 0}", ErrorKind::Value, "`max_new_tokens` must be at least 1"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = GenerationConfig::from_file(&path).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().starts_with(&format!("{name}: {starts}")), "{error}");
    }

    std::fs::write(&path, b"{\"eos_token_id\": [2, 7], \"_commit_hash\": \"abc\"}").unwrap();
    let config = GenerationConfig::from_file(&path).unwrap();
    assert_eq!(config.eos_token_id, Some(OneOrMany::Many(vec![2, 7])));
    assert!(config.unknown.is_empty());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn unknown_fields_survive_and_null_is_unset() {
    let value = json!({"top_k": null, "top_p": 0.9, "begin_at": [[1, 2]], "chat": null});
    let config = GenerationConfig::from_json(&value).unwrap();
    assert_eq!(config.unknown.keys().collect::<Vec<_>>(), ["begin_at", "chat"]);
    assert_eq!(config.to_json(), json!({"top_p": 0.9, "begin_at": [[1, 2]], "chat": null}));
    let through_serde: GenerationConfig = serde_json::from_value(value).unwrap();
    assert_eq!(through_serde, config);
    assert_eq!(serde_json::to_value(&config).unwrap(), config.to_json());
}

#[test]
fn synth_id_is_told_by_its_keys() {
    let value = json!({"watermarking_config": {"ngram_len": 5, "keys": [654, 400]}});
    let config = GenerationConfig::from_json(&value).unwrap();
    let expected = SynthIdTextWatermarkingConfig::new(5, vec![654, 400]);
    assert_eq!(config.watermarking_config, Some(Watermarking::SynthId(expected)));
}

/// JSON of any shape, its keys often the names of fields.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zé\\PC]{0,50}".prop_map(Value::from),
        Just(json!("never")),
        Just(json!("dynamic")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any_key(), inner), 0..5)
                .prop_map(|pairs| Value::Object(Map::from_iter(pairs))),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    const NESTED: &[&str] = &["bias", "keys", "ngram_len", "seeding_scheme", "context_width"];
    prop_oneof![
        8 => prop::sample::select(GenerationConfig::FIELDS).prop_map(str::to_owned),
        2 => prop::sample::select(NESTED).prop_map(str::to_owned),
        1 => "[a-z]{0,6}".prop_map(|it| it),
    ]
}

fn any_fields() -> impl Strategy<Value = Value> {
    prop::collection::vec((any_key(), any_json()), 0..8)
        .prop_map(|pairs| Value::Object(Map::from_iter(pairs)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever stands in a file, reading gives a config or a sentence, and a config survives the
    /// trip through its own JSON.
    #[test]
    fn reading_never_panics(value in any_fields()) {
        match GenerationConfig::from_json(&value) {
            Ok(config) => {
                let again = GenerationConfig::from_json(&config.to_json()).unwrap();
                prop_assert_eq!(again, config);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        let _ = Kwargs::from_json(&value);
        let _ = GenerationConfig::from_model_config(&value);
    }

    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = serde_json::from_slice::<GenerationConfig>(&bytes);
    }
}

#[test]
fn what_other_engines_say_of_the_request_is_read_and_told() {
    let read = |value: Value| GenerationConfig::from_json(&value).unwrap().request_fields();
    let draft = |value: Value| read(value).unwrap().draft_model;
    assert_eq!(draft(json!({"draft_model_id": "small"})), None);
    assert_eq!(draft(json!({"draft_model_id": "small", "use_speculative": false})), None);
    let small = json!({"draft_model_id": "small", "use_speculative": true});
    assert_eq!(draft(small.clone()).as_deref(), Some("small"));
    let chat = |value: Value| read(value).unwrap().chat;
    assert_eq!(chat(json!({"auto_chat_template": true})), Some(Chat::IfTemplate));
    assert_eq!(chat(json!({"auto_chat_template": false})), Some(Chat::Never));
    assert_eq!(
        chat(json!({"auto_chat_template": false, "assume_user_chat": true})),
        Some(Chat::Always)
    );
    assert_eq!(chat(json!({"assume_user_chat": false, "system_prompt": null})), None);
    for (value, expected) in [
        (json!({"use_speculative": true}), "`draft_model_id` names no draft model"),
        (json!({"system_prompt": 3}), "`system_prompt` must be a text, found 3"),
        (
            json!({"auto_chat_template": "yes"}),
            "`auto_chat_template` must be true or false, found \"yes\"",
        ),
    ] {
        let error = read(value).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut config = GenerationConfig::from_json(&small).unwrap();
    assert_eq!(config.take_request_fields().unwrap().draft_model.as_deref(), Some("small"));
    assert!(config.unknown.is_empty());
    // Given as keyword arguments or in a file, there is a note of what each was read as.
    let (kwargs, model) =
        (Kwargs::from_json(&json!({"system_prompt": "Hi"})).unwrap(), GenerationConfig::default());
    let passed = GenerationConfig::from_json(&small).unwrap();
    let merged = Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge().unwrap();
    let fields = merged.config.request_fields().unwrap();
    assert_eq!(
        (fields.system_prompt.as_deref(), fields.draft_model.as_deref()),
        (Some("Hi"), Some("small"))
    );
    let notes: Vec<String> = merged.warnings.iter().map(ToString::to_string).collect();
    for note in [
        "`system_prompt` is read as the system message",
        "`draft_model_id` is read as the draft model",
    ] {
        assert!(notes.iter().any(|it| it.contains(note)), "{note} is not in {notes:?}");
    }
}
