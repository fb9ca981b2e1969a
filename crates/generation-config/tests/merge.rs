//! What the recorded cases cannot show: models without a context length, refusals, odd combinations.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_generation_config::{ErrorKind, GenerationConfig, Kwargs, Merged, Sources, WarningKind};
use proptest::prelude::*;
use serde_json::{Value, json};

fn merged(kwargs: &Value, passed: &Value, model: &Value) -> Merged {
    let kwargs = Kwargs::from_json(kwargs).unwrap();
    let passed = GenerationConfig::from_json(passed).unwrap();
    let model = GenerationConfig::from_json(model).unwrap();
    Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge().unwrap()
}

fn from_kwargs(kwargs: &Value) -> Merged {
    merged(kwargs, &json!({}), &json!({}))
}

#[test]
fn a_model_without_a_context_length_caps_nothing() {
    let merged = from_kwargs(&json!({}));
    assert_eq!(merged.resolve(5, None).unwrap().lengths.max_length, 25);
    assert_eq!(merged.resolve(5, Some(12)).unwrap().lengths.max_length, 12);
}

#[test]
fn a_prompt_beyond_the_default_length_is_refused() {
    let error = from_kwargs(&json!({})).resolve(12, Some(12)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Length);
    assert_eq!(error.field(), Some("max_length"));
}

#[test]
fn the_largest_number_is_no_overflow() {
    let merged = from_kwargs(&json!({"max_new_tokens": usize::MAX, "min_new_tokens": usize::MAX}));
    let lengths = merged.resolve(9, None).unwrap().lengths;
    assert_eq!((lengths.max_length, lengths.min_length), (usize::MAX, usize::MAX));
}

#[test]
fn what_is_missing_is_refused_by_name_and_value() {
    for (kwargs, expected) in [
        (
            json!({"cache_implementation": "offloaded"}),
            r#"`cache_implementation` is "offloaded", but this kind of cache is not implemented yet"#,
        ),
        (
            json!({"is_assistant": true}),
            "`is_assistant` is true, but assisted generation is not implemented yet",
        ),
    ] {
        let error = from_kwargs(&kwargs).resolve(3, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn beam_search_is_refused_what_transformers_refuses() {
    for (kwargs, field) in [
        (json!({"num_beams": 0}), "num_beams"),
        (json!({"num_beams": 2, "low_memory": true}), "low_memory"),
    ] {
        let error = from_kwargs(&kwargs).resolve(3, None).unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Value, Some(field)));
    }
    // Without beams there is no memory to save.
    from_kwargs(&json!({"low_memory": true})).resolve(3, None).unwrap();
}

#[test]
fn values_that_ask_for_nothing_pass() {
    let kwargs = json!({
        "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "guidance_scale": 1.0,
        "penalty_alpha": 0.0, "use_cache": true, "cache_implementation": "dynamic",
        "output_scores": false, "token_healing": false, "use_mtp": false, "low_memory": false,
        "num_assistant_tokens": 5, "disable_compile": true,
    });
    from_kwargs(&kwargs).resolve(3, None).unwrap();
    // Contrastive search is greedy; a draw makes its weight idle.
    from_kwargs(&json!({"penalty_alpha": 0.6, "do_sample": true})).resolve(3, None).unwrap();
}

#[test]
fn an_argument_that_is_no_field_is_refused_unless_a_config_has_it() {
    let kwargs = Kwargs::from_json(&json!({"tempreature": 0.7})).unwrap();
    let (passed, model) = (GenerationConfig::default(), GenerationConfig::default());
    let error = Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownField);
    assert_eq!(error.to_string(), "unknown field `tempreature`");

    let merged = merged(&json!({"custom": 2}), &json!({}), &json!({"custom": 1}));
    assert_eq!(merged.config.unknown["custom"], json!(2));
}

#[test]
fn an_argument_of_none_unsets_what_the_configs_say() {
    let model = json!({"top_k": 20, "custom": 1});
    let merged = merged(&json!({"top_k": null, "custom": null, "other": null}), &json!({}), &model);
    assert_eq!(merged.config.top_k, None);
    assert_eq!(Value::Object(merged.config.unknown), json!({"custom": null}));
}

#[test]
fn an_unknown_field_of_the_passed_config_is_a_warning() {
    let merged = merged(&json!({}), &json!({"stop_word": "###"}), &json!({"chat_format": "raw"}));
    let [warning] = merged.warnings.as_slice() else { panic!("{:?}", merged.warnings) };
    assert_eq!((warning.kind(), warning.field()), (WarningKind::UnknownField, "stop_word"));
}

#[test]
fn ids_beyond_any_vocabulary_are_refused() {
    let merged = from_kwargs(&json!({"eos_token_id": [2, 1u64 << 40]}));
    assert_eq!(merged.resolve(3, None).unwrap_err().field(), Some("eos_token_id"));
}

#[test]
fn chunks_of_nothing_are_refused() {
    let error = from_kwargs(&json!({"prefill_chunk_size": 0})).resolve(3, None).unwrap_err();
    assert_eq!(error.to_string(), "`prefill_chunk_size` must be at least 1, but is 0");
}

proptest! {
    /// The stronger source decides each field, whatever the others hold.
    #[test]
    fn the_strongest_source_decides(
        kwargs in prop::option::of(0.1..2.0f64),
        passed in prop::option::of(0.1..2.0f64),
        model in prop::option::of(0.1..2.0f64),
    ) {
        let config = |it| GenerationConfig { temperature: it, ..GenerationConfig::default() };
        let (kwargs_, passed_, model_) = (Kwargs::from(config(kwargs)), config(passed), config(model));
        let merged =
            Sources { kwargs: &kwargs_, passed: &passed_, model: &model_ }.merge().unwrap();
        prop_assert_eq!(merged.config.temperature, kwargs.or(passed).or(model).or(Some(1.0)));
    }
}

#[test]
fn names_of_other_engines_are_read_as_hf_s() {
    let passed = json!({"max_tokens": 7, "stop_sequences": ["a"], "eos_token_ids": [2, 3]});
    let merged = merged(&json!({"num_draft_tokens": 4}), &passed, &json!({"stop": "b"}));
    let config = &merged.config;
    assert_eq!((config.max_new_tokens, config.num_assistant_tokens), (Some(7), Some(4)));
    assert_eq!(config.get("stop_strings"), Some(json!(["a"])));
    assert_eq!(config.get("eos_token_id"), Some(json!([2, 3])));
    let notes: Vec<String> = merged.warnings.iter().map(ToString::to_string).collect();
    for note in [
        "`max_tokens` is read as `max_new_tokens`",
        "`num_draft_tokens` is read as `num_assistant_tokens`",
    ] {
        assert!(notes.iter().any(|it| it == note), "{notes:?}");
    }

    let read = GenerationConfig::from_json(&passed).unwrap();
    assert_eq!(GenerationConfig::from_json(&read.to_json()).unwrap().max_new_tokens, Some(7));
    let both = json!({"max_tokens": 7, "max_new_tokens": 8});
    let error = GenerationConfig::from_json(&both).unwrap_err();
    assert_eq!(error.field(), Some("max_new_tokens"));
}
