//! The fields that HF does not have: what they make, where it stands, what is refused.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_generation_config::{Error, ErrorKind, GenerationConfig, Kwargs, Pipeline, Sources};
use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_samplers::Warper;
use serde_json::{Value, json};

fn pipeline(fields: &Value) -> Result<Pipeline, Error> {
    let kwargs = Kwargs::from_json(fields)?;
    let (passed, model) = (GenerationConfig::default(), GenerationConfig::default());
    let merged = Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge()?;
    merged.resolve(3, None)?.pipeline(8)
}

#[test]
fn penalties_and_biases_stand_beside_their_relatives() {
    let pipeline = pipeline(&json!({
        "frequency_penalty": 0.5, "presence_penalty": 1.0, "logit_bias": {"6": -2.0},
        "forced_decoder_ids": [[9, 1]], "no_repeat_ngram_size": 5, "repetition_penalty": 2.0,
    }))
    .unwrap();
    let names: Vec<&str> = pipeline.processors.iter().map(LogitsProcessor::name).collect();
    assert_eq!(
        names,
        [
            "TokenBias",
            "RepetitionPenaltyLogitsProcessor",
            "FrequencyPenalty",
            "PresencePenalty",
            "NoRepeatNGramLogitsProcessor",
            "ForceTokensLogitsProcessor",
        ]
    );
}

#[test]
fn frequency_counts_what_was_generated_or_the_last_tokens() {
    let run = |fields: Value| {
        let mut scores = [0.0; 8];
        let context = Context::new(&[4, 4, 5, 4, 5, 5], 3);
        pipeline(&fields).unwrap().processors.process(&context, &mut scores).unwrap();
        [scores[4], scores[5]]
    };
    assert_eq!(run(json!({"frequency_penalty": 1.0})), [-1.0, -2.0]);
    assert_eq!(run(json!({"frequency_penalty": 1.0, "penalty_last_n": 5})), [-2.0, -3.0]);
    assert_eq!(run(json!({"presence_penalty": 1.5, "penalty_last_n": 2})), [0.0, -1.5]);
}

#[test]
fn warpers_run_in_the_order_that_is_asked_for() {
    let order = |name: &str| {
        let fields = json!({
            "do_sample": true, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "top_n_sigma": 2.0,
            "xtc_probability": 0.5, "sampler_order": name,
        });
        let chain = pipeline(&fields).unwrap().warpers;
        let name = |it: &Warper| format!("{it:?}").split([' ', '(']).next().unwrap().to_owned();
        chain.warpers().iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(order("hf"), ["Temperature", "TopK", "TopP", "TopNSigma", "Xtc"]);
    assert_eq!(order("mlx_lm"), ["TopP", "TopNSigma", "Xtc", "TopK", "Temperature"]);
    assert_eq!(order("llama_cpp"), ["TopNSigma", "TopK", "TopP", "Xtc", "Temperature"]);
}

#[test]
fn mirostat_takes_the_place_of_the_other_warpers() {
    let fields = json!({"do_sample": true, "top_k": 5, "temperature": 0.5, "mirostat": 2});
    assert_eq!(pipeline(&fields).unwrap().warpers.warpers().len(), 2);
}

#[test]
fn impossible_values_are_refused_by_name() {
    let refused = |fields: Value, words: &str| {
        let mut fields = fields;
        fields["do_sample"] = true.into();
        let error = pipeline(&fields).unwrap_err();
        assert!([ErrorKind::Value, ErrorKind::Type].contains(&error.kind()), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(json!({"mirostat": 3}), "`mirostat` must be 0, 1 or 2");
    refused(json!({"mirostat": 1, "mirostat_tau": 0.0}), "`mirostat_tau`");
    refused(json!({"sampler_order": "alphabetical"}), "`sampler_order`");
    refused(json!({"xtc_probability": 2.0}), "`xtc_probability`");
    refused(json!({"xtc_probability": 0.5, "xtc_threshold": -1.0}), "`xtc_threshold`");
    refused(json!({"dynatemp_range": -1.0}), "`dynatemp_range`");
    refused(json!({"logit_bias": {"-1": 1.0}}), "`logit_bias` holds -1");
    refused(json!({"logit_bias": {"a": 1.0}}), "`logit_bias` must be an object with token ids");
    refused(json!({"xtc_special_tokens": [-7]}), "`xtc_special_tokens` holds -7");
    refused(
        json!({"regex": "a", "grammar": "start: \"a\""}),
        "`grammar` cannot be combined with `regex`",
    );
}

#[test]
fn they_are_read_and_written_like_any_other_field() {
    let value = json!({"logit_bias": {"3": -100.0, "50256": 2.5}, "json_schema": {"type": "null"}});
    assert_eq!(GenerationConfig::from_json(&value).unwrap().to_json(), value);
}
