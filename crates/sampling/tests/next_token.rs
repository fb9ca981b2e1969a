//! One text's tokens from a config and rows of scores.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_generation_config::{GenerationConfig, Resolved};
use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_samplers::{SamplerState, TorchRng, greedy};
use mlxgk_sampling::{ErrorKind, FinishReason, NextToken, Rules, Seed, Text};
use serde_json::{Value, json};

const VOCAB: usize = 12;
const PROMPT: [u32; 2] = [5, 3];

fn resolved(fields: &Value) -> Resolved {
    let config = GenerationConfig::from_json(fields).unwrap();
    config.resolve(&GenerationConfig::default(), PROMPT.len(), None).unwrap()
}

fn next(fields: &Value, text: Option<&Text>) -> NextToken {
    NextToken::new(&resolved(fields), VOCAB, text, Seed::Torch(42)).unwrap()
}

/// Scores that depend on the text.
fn scores(tokens: &[u32]) -> Vec<f32> {
    let last = *tokens.last().unwrap() as usize;
    (0..VOCAB).map(|id| ((id * 7 + last * 5 + tokens.len()) % 11) as f32 / 3.0).collect()
}

fn run(next: &mut NextToken) -> (Vec<u32>, FinishReason) {
    let mut tokens = PROMPT.to_vec();
    loop {
        let step = next.next(&tokens, &mut scores(&tokens)).unwrap();
        tokens.push(step.token);
        if let Some(reason) = step.finish_reason {
            return (tokens.split_off(PROMPT.len()), reason);
        }
    }
}

/// The pieces by hand, in HF's order: processors, warpers, what follows them, the draw.
#[test]
fn it_is_processors_warpers_and_a_draw_from_torch_s_stream() {
    for fields in [
        json!({"do_sample": true, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.3}),
        json!({"do_sample": true, "top_p": 0.8, "renormalize_logits": true, "suppress_tokens": [4]}),
        json!({"do_sample": true, "mirostat": 2, "mirostat_tau": 2.0, "frequency_penalty": 0.5}),
        json!({"do_sample": true, "watermarking_config": {"greenlist_ratio": 0.4, "bias": 3.0}}),
        json!({"temperature": 0.7, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "eos_token_id": 7}),
    ] {
        let resolved = resolved(&fields);
        let pipeline = resolved.pipeline(VOCAB).unwrap();
        let (mut sampler, mut state) = (pipeline.warpers.sampler(), SamplerState::default());
        let mut plain = mlxgk_samplers::Sampler::default();
        let mut rng = TorchRng::new(42);
        let mut tokens = PROMPT.to_vec();
        for _ in 0..20 {
            let context = Context::new(&tokens, PROMPT.len());
            let mut row = scores(&tokens);
            pipeline.processors.process(&context, &mut row).unwrap();
            let token = if resolved.do_sample {
                sampler.warp(&mut row, &state, &mut rng).unwrap();
                pipeline.after.process(&context, &mut row).unwrap();
                let token = plain.sample(&row, &mut SamplerState::default(), &mut rng).unwrap();
                sampler.observe(token, &mut state);
                token
            } else {
                greedy(&row).unwrap()
            };
            tokens.push(token);
            if resolved.special_tokens.eos.contains(&token) {
                break;
            }
        }
        assert_eq!(run(&mut next(&fields, None)).0, tokens[PROMPT.len()..], "{fields}");
    }
}

#[test]
fn a_text_ends_at_its_length_or_an_end_token() {
    let (tokens, reason) = run(&mut next(&json!({"max_new_tokens": 6}), None));
    assert_eq!((tokens.len(), reason), (6, FinishReason::Length));
    let end = tokens[3];
    let (ended, reason) = run(&mut next(&json!({"max_new_tokens": 6, "eos_token_id": end}), None));
    let first = tokens.iter().position(|it| *it == end).unwrap();
    assert_eq!((&ended[..], reason), (&tokens[..=first], FinishReason::Eos));
}

#[test]
fn a_text_can_be_taken_back() {
    let mut rule = next(&json!({"repetition_penalty": 1.5, "max_new_tokens": 9}), None);
    let (tokens, _) = run(&mut rule);
    assert_eq!(run(&mut rule).0, tokens);
    let before = [&PROMPT[..], &tokens[..4]].concat();
    assert_eq!(rule.next(&before, &mut scores(&before)).unwrap().token, tokens[4]);
}

#[test]
fn no_token_is_an_error() {
    let all: Vec<usize> = (0..VOCAB).collect();
    for do_sample in [false, true] {
        let fields = json!({"do_sample": do_sample, "suppress_tokens": all});
        let error = next(&fields, None).next(&PROMPT, &mut scores(&PROMPT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoTokenAllowed, "{error}");
        let mut rule = next(&json!({"do_sample": do_sample}), None);
        for score in [f32::NEG_INFINITY, f32::NAN] {
            let error = rule.next(&PROMPT, &mut [score; VOCAB]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoTokenAllowed, "{error}");
        }
    }
}

#[test]
fn what_one_row_of_scores_cannot_do_is_refused_by_name() {
    for (field, fields) in [
        ("num_beams", json!({"num_beams": 2})),
        (
            "num_beam_groups",
            json!({"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0}),
        ),
        ("force_words_ids", json!({"num_beams": 2, "force_words_ids": [[1]]})),
        ("penalty_alpha", json!({"penalty_alpha": 0.6, "top_k": 4})),
        ("dola_layers", json!({"dola_layers": "high"})),
        ("prompt_lookup_num_tokens", json!({"prompt_lookup_num_tokens": 3})),
        ("guidance_scale", json!({"guidance_scale": 1.5})),
        ("token_healing", json!({"token_healing": true})),
        ("num_return_sequences", json!({"do_sample": true, "num_return_sequences": 2})),
        ("stop_strings", json!({"stop_strings": ["a"]})),
        ("regex", json!({"regex": "a"})),
        ("max_time", json!({"max_time": -1.0})),
        ("temperature", json!({"do_sample": true, "temperature": -1.0})),
    ] {
        let made = NextToken::new(&resolved(&fields), VOCAB, None, Seed::Torch(0));
        let error = match made {
            Ok(mut rule) => rule.next(&PROMPT, &mut scores(&PROMPT)).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains(&format!("`{field}`")), "{error}");
    }
    let error = next(&json!({}), None).next(&PROMPT, &mut [0.0]).unwrap_err();
    assert_eq!(error.to_string(), "there are 1 scores for a vocabulary of 12");
    let error = next(&json!({}), None).next(&PROMPT[..1], &mut [0.0; VOCAB]).unwrap_err();
    assert_eq!(error.to_string(), "the text has 1 tokens, but its prompt has 2");
}

#[cfg(feature = "grammars")]
mod about_text {
    use mlxgk_tokenizer_bridge::{Files, Tokenizer};

    use super::*;

    /// Letters and digits of the schema and texts below, and an end token.
    fn text() -> Text {
        let json = r#"{
            "added_tokens": [{"id": 0, "content": "</s>", "special": true, "single_word": false,
                              "lstrip": false, "rstrip": false, "normalized": false}],
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                        "use_regex": false},
            "model": {"type": "BPE", "vocab": {"</s>": 0, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5,
                      "f": 6, "ab": 7, "[": 8, "]": 9, ",": 10, "1": 11}, "merges": []}
        }"#;
        let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
        Tokenizer::from_files(&files).unwrap().into()
    }

    fn spelled(text: &Text, tokens: &[u32]) -> String {
        text.tokenizer().decode(tokens, true).unwrap()
    }

    #[test]
    fn a_grammar_shapes_the_text_and_ends_it() {
        let text = text();
        for do_sample in [false, true] {
            let fields =
                json!({"regex": r"\[1(,1){1,2}\]", "do_sample": do_sample, "eos_token_id": 0});
            let (tokens, reason) = run(&mut next(&fields, Some(&text)));
            assert_eq!(reason, FinishReason::Eos, "{fields}");
            let made = spelled(&text, &tokens);
            assert!(["[1,1]", "[1,1,1]"].contains(&&made[..]), "{made}");
        }
    }

    /// What somebody holds is not compiled again, and serves texts as if it were.
    #[test]
    fn a_grammar_is_compiled_once_while_it_is_held() {
        let text = text();
        let compile = |it: &Resolved| text.compile(it).unwrap().unwrap();
        let held = compile(&resolved(&json!({"regex": "[ab]{2}", "eos_token_id": 0})));
        assert_eq!(compile(&resolved(&json!({"regex": "[ab]{2}", "eos_token_id": 0}))), held);
        for other in [
            json!({"regex": "[ab]{3}", "eos_token_id": 0}),
            json!({"regex": "[ab]{2}", "eos_token_id": [0, 3]}),
        ] {
            assert_ne!(compile(&resolved(&other)), held, "{other}");
        }
        assert_eq!(text.compile(&resolved(&json!({"eos_token_id": 0}))).unwrap(), None);
        for _ in 0..2 {
            let fields = json!({"regex": "[ab]{2}", "eos_token_id": 0});
            let (tokens, reason) = run(&mut next(&fields, Some(&text)));
            assert_eq!((spelled(&text, &tokens).len(), reason), (2, FinishReason::Eos));
        }
        let wrong = resolved(&json!({"regex": "[ab", "eos_token_id": 0}));
        let refused = NextToken::new(&wrong, VOCAB, Some(&text), Seed::Torch(0)).unwrap_err();
        assert_eq!(text.compile(&wrong).unwrap_err().to_string(), refused.to_string());
    }

    #[test]
    fn a_grammar_that_other_bans_leave_nothing_of_is_an_error() {
        let text = text();
        for do_sample in [false, true] {
            let fields = json!({"do_sample": do_sample, "regex": "ab", "suppress_tokens": [1, 7],
                                "eos_token_id": 0});
            let error = next(&fields, Some(&text)).next(&PROMPT, &mut scores(&PROMPT)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoTokenAllowed, "{error}");
        }
    }

    #[test]
    fn a_stop_string_ends_the_text_where_it_ends() {
        let text = text();
        let (whole, _) = run(&mut next(&json!({"max_new_tokens": 12}), Some(&text)));
        let string = spelled(&text, &whole[3..6]);
        let fields = json!({"max_new_tokens": 12, "stop_strings": [string]});
        let (tokens, reason) = run(&mut next(&fields, Some(&text)));
        assert_eq!(reason, FinishReason::StopString);
        assert!(whole.starts_with(&tokens) && spelled(&text, &tokens).ends_with(&string));
    }
}

/// Whether a value of a field is refused, with the fields set that make it count.
fn is_refused(field: &str, value: &Value) -> bool {
    let mut fields = match field {
        "xtc_threshold" => json!({"xtc_probability": 0.5}),
        "dynatemp_exponent" => json!({"dynatemp_range": 0.5}),
        "mirostat_tau" | "mirostat_eta" => json!({"mirostat": 2}),
        "dry_base" => json!({"dry_multiplier": 1.0, "dry_sequence_breakers": []}),
        "kv_group_size" => json!({"kv_bits": 4}),
        _ => json!({}),
    };
    fields["do_sample"] = true.into();
    fields[field] = value.clone();
    let Ok(config) = GenerationConfig::from_json(&fields) else { return true };
    let Ok(resolved) = config.resolve(&GenerationConfig::default(), PROMPT.len(), None) else {
        return true;
    };
    Rules::new(&resolved, VOCAB, None, Seed::Torch(42)).is_err()
}

/// The bounds that a range names, each with a step towards the inside.
fn bounds(range: &str) -> Vec<(f64, bool, f64)> {
    if let Some((low, high)) = range.split_once(" to ") {
        return vec![(low.parse().unwrap(), true, 1.0), (high.parse().unwrap(), true, -1.0)];
    }
    let bound = |part: &str| {
        let (word, number) = part.rsplit_once(' ').unwrap();
        let (is_inside, inwards) = match word {
            "at least" => (true, 1.0),
            "above" => (false, 1.0),
            "at most" => (true, -1.0),
            "below" => (false, -1.0),
            _ => panic!("{part}"),
        };
        (number.parse().unwrap(), is_inside, inwards)
    };
    range.split(", ").map(bound).collect()
}

#[test]
fn the_ranges_of_fields_are_those_that_are_checked() {
    let ranges = GenerationConfig::FIELDS
        .iter()
        .filter_map(|it| GenerationConfig::range_of(it).map(|range| (*it, range)));
    let mut count = 0;
    for (field, range) in ranges {
        count += 1;
        if range.contains(" or ") {
            let listed: Vec<&str> = range.split(", ").flat_map(|it| it.split(" or ")).collect();
            let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
            for text in &listed {
                assert!(!is_refused(field, &value(text)), "{field}: {text}");
            }
            assert!(is_refused(field, &value(if listed[0] == "hf" { "other" } else { "7" })));
            continue;
        }
        let is_whole = GenerationConfig::type_of(field).unwrap() == "integer";
        let step = if is_whole { 1.0 } else { 1.0 / 1024.0 };
        let value = |it: f64| if is_whole { json!(it as u64) } else { json!(it) };
        for (bound, is_inside, inwards) in bounds(range) {
            assert_eq!(is_refused(field, &value(bound)), !is_inside, "{field}: {bound}");
            assert!(!is_refused(field, &value(bound + inwards * step)), "{field}, inside {bound}");
            if !is_whole || bound >= 1.0 {
                assert!(is_refused(field, &value(bound - inwards * step)), "{field}: {bound}");
            }
        }
    }
    assert!(count > 20, "{count}");
}
