//! Grammars and DRY, which need the model's tokenizer.

#![cfg(all(feature = "bundled", feature = "grammars"))]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlx_genkit::{
    ComputeDtype, FinishReason, Generation, GenerationConfig, Model, NoHook, Request, Seed,
    decoding_strategies::{LanguageModel, LeftPadded, Prefill},
    sampling::{NextToken, Text},
};
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

/// The pure choice of a token over this model's scores gives what the facade gives.
#[test]
fn the_pure_next_token_makes_the_same_text() {
    let model = bundled();
    let text = Text::from(model.tokenizer().unwrap().clone());
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}},
                        "required": ["a"], "additionalProperties": false});
    for fields in [
        json!({"json_schema": schema, "do_sample": true, "temperature": 1.3}),
        json!({"stop_strings": ["e w", "."], "do_sample": true, "mirostat": 2, "dry_multiplier": 0.8}),
        json!({"stop_strings": ["."], "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}),
    ] {
        let config = GenerationConfig {
            max_new_tokens: Some(40),
            ..GenerationConfig::from_json(&fields).unwrap()
        };
        let prompt = model.tokenizer().unwrap().encode("Once upon a time", true).unwrap();
        let mut tokens = prompt.clone();
        let request = Request::new(prompt.clone()).config(config.clone()).seed(Seed::Torch(7));
        let sequence = model.generate(request).unwrap().sequences.swap_remove(0);

        let resolved = config.resolve(model.generation_config(), tokens.len(), None).unwrap();
        let vocab = model.decoder().vocab_size();
        let mut next = NextToken::new(&resolved, vocab, Some(&text), Seed::Torch(7)).unwrap();
        let rows = LeftPadded::new(std::slice::from_ref(&prompt), 0).unwrap();
        let mut session = Prefill::new(model.decoder(), &rows, NoHook).finish().unwrap();
        let finish_reason = loop {
            let mut scores = session.scores().unwrap().to_vec();
            let step = next.next(&tokens, &mut scores).unwrap();
            tokens.push(step.token);
            if let Some(reason) = step.finish_reason {
                break reason;
            }
            session.feed(&[step.token]).unwrap();
        };
        assert_eq!(tokens[prompt.len()..], sequence.tokens, "{fields}");
        assert_eq!(finish_reason, sequence.finish_reason);
    }
}

/// Every mode beside every setting that bans, forces or favours: the text fits, or an error says
/// that none does.
#[test]
fn a_grammar_holds_beside_anything_else() {
    let model = bundled();
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}},
                        "required": ["a"], "additionalProperties": false});
    let brace = model.tokenizer().unwrap().token_to_id("{").unwrap();
    let modes = [
        json!({}),
        json!({"do_sample": true, "temperature": 1.5}),
        json!({"num_beams": 3}),
        json!({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}),
        json!({"penalty_alpha": 0.6, "top_k": 4}),
        json!({"prompt_lookup_num_tokens": 3}),
        json!({"guidance_scale": 1.5}),
    ];
    let beside = [
        (json!({}), true),
        (json!({"repetition_penalty": 2.0, "presence_penalty": 1.0}), true),
        (json!({"exponential_decay_length_penalty": [1, 1.5]}), true),
        (json!({"remove_invalid_values": true, "renormalize_logits": true}), true),
        (json!({"suppress_tokens": [brace], "bad_words_ids": [[904]]}), false),
        (json!({"suppress_tokens": [brace], "remove_invalid_values": true}), false),
        (json!({"no_repeat_ngram_size": 1}), false),
        (json!({"min_new_tokens": 30}), false),
        (json!({"forced_eos_token_id": 2, "max_new_tokens": 4}), false),
        (json!({"forced_decoder_ids": [[2, 400]]}), false),
    ];
    for mode in &modes {
        for (settings, fits) in &beside {
            let mut fields = json!({"max_new_tokens": 40, "json_schema": schema});
            for part in [mode, settings] {
                fields.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
            }
            let config = GenerationConfig::from_json(&fields).unwrap();
            let made = model.generate(Request::new("Hi").config(config).seed(Seed::Fast(5)));
            match made {
                Ok(generation) if *fits => {
                    let text = &generation.sequences[0].text;
                    let value: Value = serde_json::from_str(text).unwrap();
                    assert!(value["a"].is_boolean(), "{fields}: {text}");
                }
                Ok(generation) => panic!("{fields}: {:?}", generation.sequences[0].text),
                Err(e) => assert!(!fits, "{fields}: {e}"),
            }
        }
    }
    let fields = json!({"dola_layers": "high", "json_schema": schema});
    let config = GenerationConfig::from_json(&fields).unwrap();
    let error = model.generate(Request::new("Hi").config(config)).unwrap_err().to_string();
    assert!(error.starts_with("structured output is not available with DoLa"), "{error}");
}

/// A guess that leads nowhere is not an error: the model takes another path.
#[test]
fn a_draft_may_run_into_a_dead_end() {
    let model = bundled();
    let token = |text: &str| model.tokenizer().unwrap().token_to_id(text).unwrap();
    let prompt: Vec<u32> = ["a", "b", "c", "a"].iter().map(|it| token(it)).collect();
    let fields = json!({"regex": "bcd|ef", "suppress_tokens": [token("c")], "max_new_tokens": 9,
                        "logit_bias": {token("e").to_string(): 50.0}, "prompt_lookup_num_tokens": 3});
    let config = GenerationConfig::from_json(&fields).unwrap();
    let generation = model.generate(Request::new(prompt).config(config)).unwrap();
    assert_eq!(generation.sequences[0].text, "ef");
}

#[test]
fn what_a_grammar_does_not_enforce_is_a_warning() {
    let schema = json!({"type": "string", "format": "password", "maxLength": 3});
    let config = GenerationConfig { json_schema: Some(schema), ..GenerationConfig::default() };
    let model = bundled();
    let plan = model.plan(Request::new("Hi").config(config)).unwrap();
    let warnings: Vec<String> = plan.warnings().iter().map(ToString::to_string).collect();
    let expected = "`json_schema`: `/format`: \"password\" is not enforced";
    assert!(warnings.iter().any(|it| it == expected), "{warnings:?}");
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
    // The loop continues with " the" by itself here because a bias makes it so.
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
