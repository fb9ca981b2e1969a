//! Parameters that the processors refuse; what they do is compared with HF's in the goldens.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_generation_config::{ErrorKind, GenerationConfig, Kwargs, Resolved, Sources};
use serde_json::{Value, json};

fn resolved(kwargs: &Value) -> Resolved {
    let kwargs = Kwargs::from_json(kwargs).unwrap();
    let (passed, model) = (GenerationConfig::default(), GenerationConfig::default());
    let sources = Sources { kwargs: &kwargs, passed: &passed, model: &model };
    sources.merge().unwrap().resolve(4, None).unwrap()
}

#[test]
fn a_parameter_out_of_range_is_named() {
    for (field, kwargs) in [
        ("temperature", json!({"do_sample": true, "temperature": 0.0})),
        ("temperature", json!({"do_sample": true, "temperature": -1.0})),
        ("top_p", json!({"do_sample": true, "top_p": 1.5})),
        ("min_p", json!({"do_sample": true, "min_p": -0.1})),
        ("top_h", json!({"do_sample": true, "top_h": 0.0})),
        ("typical_p", json!({"do_sample": true, "typical_p": -0.2})),
        ("repetition_penalty", json!({"repetition_penalty": 0.0})),
        ("encoder_repetition_penalty", json!({"encoder_repetition_penalty": -1.0})),
        ("bad_words_ids", json!({"bad_words_ids": [[1], []]})),
        ("bad_words_ids", json!({"bad_words_ids": [[-1]]})),
        ("sequence_bias", json!({"sequence_bias": []})),
        ("sequence_bias", json!({"sequence_bias": [[[-3], 1.0]]})),
        ("forced_bos_token_id", json!({"forced_bos_token_id": -1})),
        ("exponential_decay_length_penalty", json!({"exponential_decay_length_penalty": [1, 1.5]})),
    ] {
        let error = resolved(&kwargs).pipeline(100).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Value, "{kwargs}");
        assert!(error.to_string().starts_with(&format!("`{field}` ")), "{error}");
    }
}

#[test]
fn idle_parameters_make_nothing() {
    let kwargs = json!({
        "do_sample": true, "top_k": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
        "min_new_tokens": 3, "min_length": 9, "renormalize_logits": false,
    });
    // Without an end token there is nothing to keep from ending.
    let pipeline = resolved(&kwargs).pipeline(100).unwrap();
    assert!(pipeline.processors.is_empty() && pipeline.after.is_empty());
    assert!(pipeline.warpers.warpers().is_empty());
}

#[test]
fn greedy_search_has_no_warpers_and_ends_in_the_normalisation() {
    let kwargs = json!({"temperature": 0.5, "renormalize_logits": true, "suppress_tokens": [1]});
    let pipeline = resolved(&kwargs).pipeline(100).unwrap();
    let names: Vec<_> = pipeline.processors.iter().map(|it| it.name()).collect();
    assert_eq!(names, ["SuppressTokensLogitsProcessor", "LogitNormalization"]);
    assert!(pipeline.warpers.warpers().is_empty() && pipeline.after.is_empty());
}
