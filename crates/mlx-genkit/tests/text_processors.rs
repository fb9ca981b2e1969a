//! Grammars and DRY, which need the model's tokenizer.

#![cfg(all(feature = "bundled", feature = "grammars"))]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlx_genkit::{ComputeDtype, FinishReason, Generation, GenerationConfig, Model, Request, Seed};
use serde_json::{Value, json};

fn bundled() -> Model {
    Model::bundled(ComputeDtype::Float32).unwrap()
}

/// Four draws at a temperature at which the model alone would keep to no form.
fn draw(model: &Model, prompt: &str, config: GenerationConfig) -> Generation {
    let config = GenerationConfig {
        max_new_tokens: Some(80),
        do_sample: Some(true),
        temperature: Some(1.2),
        num_return_sequences: Some(4),
        ..config
    };
    model.generate(Request::new(prompt).config(config).seed(Seed::Fast(11))).unwrap()
}

#[test]
fn a_schema_shapes_every_sequence() {
    let schema = json!({
        "type": "object",
        "properties": {
            "mood": {"enum": ["cheerful", "gloomy"]},
            "words": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 1, "maxItems": 2},
        },
        "required": ["mood", "words"],
        "additionalProperties": false,
    });
    let config = GenerationConfig { json_schema: Some(schema), ..GenerationConfig::default() };
    let generation = draw(&bundled(), "How are you?", config);
    assert_eq!(generation.sequences.len(), 4);
    for sequence in &generation.sequences {
        assert_eq!(sequence.finish_reason, FinishReason::Eos, "{}", sequence.text);
        let value: Value = serde_json::from_str(&sequence.text).unwrap();
        assert!(["cheerful", "gloomy"].contains(&value["mood"].as_str().unwrap()), "{value}");
        let words = value["words"].as_array().unwrap();
        assert!((1..=2).contains(&words.len()), "{value}");
        assert!(words.iter().all(|it| it.as_str().unwrap().chars().count() <= 8), "{value}");
    }
}

#[test]
fn an_expression_and_a_grammar_shape_the_text() {
    let model = bundled();
    let days = ["Today", "Tomorrow"];
    let regex = "(Today|Tomorrow) at [1-9] o'clock\\.".to_owned();
    let config = GenerationConfig { regex: Some(regex), ..GenerationConfig::default() };
    for sequence in draw(&model, "When?", config).sequences {
        let rest = days.iter().find_map(|it| sequence.text.strip_prefix(it)).unwrap();
        let hour = rest.strip_prefix(" at ").and_then(|it| it.strip_suffix(" o'clock."));
        assert!(hour.unwrap().parse::<u8>().is_ok(), "{}", sequence.text);
    }

    let lark = "start: pair+ \".\"\npair: \"(\" pair? \")\"\n".to_owned();
    let config = GenerationConfig { grammar: Some(lark), ..GenerationConfig::default() };
    for sequence in draw(&model, "Brackets:", config).sequences {
        // A sequence may be cut off by its length, but it is never unbalanced on the way.
        let mut open = 0;
        for character in sequence.text.chars() {
            match character {
                '(' => open += 1,
                ')' => open -= 1,
                other => assert_eq!((other, open), ('.', 0), "{}", sequence.text),
            }
            assert!(open >= 0, "{}", sequence.text);
        }
    }
}

#[test]
fn dry_ends_a_loop_and_breakers_shorten_what_counts() {
    let model = bundled();
    let prompt = "the sea and the sea and the sea and the sea and";
    let run = |config: GenerationConfig| {
        let config = GenerationConfig { max_new_tokens: Some(1), ..config };
        model.generate(Request::new(prompt).config(config)).unwrap().sequences[0].tokens[0]
    };
    let dry = |breakers: Option<Vec<String>>| GenerationConfig {
        dry_multiplier: Some(100.0),
        dry_sequence_breakers: breakers,
        ..GenerationConfig::default()
    };
    // The loop goes on with " the" by itself here because a bias makes it so.
    let the = model.tokenizer().unwrap().encode(" the", false).unwrap()[0];
    let bias = || Some([(i64::from(the), 50.0)].into());
    let plain = GenerationConfig { logit_bias: bias(), ..GenerationConfig::default() };
    assert_eq!(run(plain), the);
    assert_ne!(run(GenerationConfig { logit_bias: bias(), ..dry(None) }), the);
    let every_word = Some(vec![" and".to_owned()]);
    assert_eq!(run(GenerationConfig { logit_bias: bias(), ..dry(every_word) }), the);
}

#[test]
fn a_grammar_without_a_tokenizer_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama");
    let model = Model::load(folder, ComputeDtype::Float32).unwrap();
    let config = GenerationConfig { regex: Some("a+".to_owned()), ..GenerationConfig::default() };
    let error = model.generate(Request::new(vec![5, 6]).config(config)).unwrap_err();
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
}

#[test]
fn requests_with_other_end_tokens_do_not_mix() {
    let model = bundled();
    let ends_with = |eos: i64| {
        let config = GenerationConfig {
            regex: Some("yes".to_owned()),
            eos_token_id: Some(eos.into()),
            ..GenerationConfig::default()
        };
        let generation = model.generate(Request::new("So?").config(config)).unwrap();
        *generation.sequences[0].tokens.last().unwrap()
    };
    assert_eq!([ends_with(2), ends_with(0), ends_with(2)], [2, 0, 2]);
}
