//! What a grammar lets through, and that its result depends on the context alone.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::{Context, ErrorKind, LogitsProcessor, Result};
use proptest::prelude::*;
use serde_json::{Value, json};

const END: u32 = 256;
const END_TOO: u32 = 257;
/// The model scores more ids than the tokenizer has tokens.
const WIDTH: usize = 300;

fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"\xff<|end|>".to_vec());
    tokens.push(b"\xff<|stop|>".to_vec());
    Vocabulary::new(&tokens, &[END, END_TOO]).unwrap()
}

fn processor(grammar: Result<Grammar>) -> GrammarProcessor {
    GrammarProcessor::new(&vocabulary(), &grammar.unwrap()).unwrap()
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// The ids allowed after `prompt` and the generated `text`.
fn allowed(processor: &GrammarProcessor, text: &str) -> Vec<u32> {
    let tokens = [ids("Prompt: "), ids(text)].concat();
    let mut scores = vec![0.5; WIDTH];
    processor.process(&Context::new(&tokens, 8), &mut scores).unwrap();
    assert!(scores.iter().all(|&it| it == 0.5 || it == f32::NEG_INFINITY));
    (0..WIDTH as u32).filter(|&id| scores[id as usize] == 0.5).collect()
}

#[test]
fn a_regular_expression_is_matched_from_beginning_to_end() {
    let processor = processor(Grammar::regex("(cat|dog)[0-9]{2}"));
    assert_eq!(allowed(&processor, ""), ids("cd"));
    assert_eq!(allowed(&processor, "d"), ids("o"));
    assert_eq!(allowed(&processor, "dog"), ids("0123456789"));
    assert_eq!(allowed(&processor, "dog42"), [END, END_TOO]);
}

#[test]
fn a_lark_grammar_nests() {
    let processor = processor(Grammar::lark("start: list\nlist: \"[\" list* \"]\""));
    assert_eq!(allowed(&processor, "[[]"), ids("[]"));
    assert_eq!(allowed(&processor, "[[]]"), [END, END_TOO]);
}

#[test]
fn white_space_cannot_loop() {
    let schema =
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let processor = processor(Grammar::json_schema(&schema));
    assert_eq!(allowed(&processor, ""), ids("{"));
    assert_eq!(allowed(&processor, "{"), ids("\""));
    assert!(!allowed(&processor, "{\"a\":").contains(&u32::from(b'\n')));
    let loose = json!({"type": "integer", "x-guidance": {"whitespace_flexible": true}});
    let loose = processor_of(
        &json!({"type": "array", "items": loose, "x-guidance": {"whitespace_flexible": true}}),
    );
    assert!(allowed(&loose, "[").contains(&u32::from(b'\n')));
}

fn processor_of(schema: &Value) -> GrammarProcessor {
    processor(Grammar::json_schema(schema))
}

#[test]
fn a_row_that_has_ended_is_left_alone() {
    let processor = processor(Grammar::regex("ab"));
    let tokens = [ids("ab"), vec![END, 0, 0]].concat();
    let mut scores = vec![0.5; WIDTH];
    processor.process(&Context::new(&tokens, 0), &mut scores).unwrap();
    assert!(scores.iter().all(|&it| it == 0.5));
    assert!(processor.is_complete(&Context::new(&tokens, 0)).unwrap());
    assert!(!processor.is_complete(&Context::new(&ids("a"), 0)).unwrap());
}

#[test]
fn tokens_outside_the_grammar_are_an_error_and_break_nothing() {
    let processor = processor(Grammar::regex("ab+"));
    let mut scores = vec![0.0; WIDTH];
    let error = processor.process(&Context::new(&ids("ax"), 0), &mut scores).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoTokenAllowed);
    assert_eq!(allowed(&processor, "a"), ids("b"));
}

#[test]
fn bad_grammars_are_refused_in_one_line() {
    let compile =
        |grammar: Result<Grammar>| GrammarProcessor::new(&vocabulary(), &grammar?).map(|_| ());
    for (grammar, word) in [
        (Grammar::regex(""), "empty"),
        (Grammar::regex("(a"), "regular expression"),
        (Grammar::lark("  \n"), "empty"),
        (Grammar::lark("start: missing"), "grammar"),
        (Grammar::lark("start: (\"a\""), "grammar"),
        (Grammar::json_schema(&json!(7)), "JSON schema"),
        (Grammar::json_schema(&json!({"type": "spaceship"})), "JSON schema"),
        (Grammar::json_schema(&json!({"$ref": "#/nowhere"})), "JSON schema"),
    ] {
        let error = compile(grammar).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parameter);
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let no_end = Vocabulary::new(&[vec![b'a']], &[]).unwrap_err();
    assert!(no_end.to_string().contains("end token"));
    assert_eq!(Vocabulary::new(&[vec![b'a']], &[1]).unwrap_err().kind(), ErrorKind::Token);
}

/// Texts of a small schema, cut anywhere.
fn documents() -> impl Strategy<Value = String> {
    let value = (0_u32..1000, "[a-z]{0,6}", any::<bool>());
    (value, 0_usize..40).prop_map(|((number, word, flag), cut)| {
        let text = format!("{{\"n\": {number}, \"w\": \"{word}\", \"f\": {flag}}}");
        text[..cut.min(text.len())].to_owned()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// However often and in whatever order prefixes are asked about, the answer is that of a
    /// processor which has seen nothing else.
    #[test]
    fn the_verdict_depends_on_the_context_alone(texts in prop::collection::vec(documents(), 1..12)) {
        let schema = json!({
            "type": "object",
            "properties": {
                "n": {"type": "integer"}, "w": {"type": "string"}, "f": {"type": "boolean"},
            },
            "required": ["n", "w", "f"],
            "additionalProperties": false,
        });
        let shared = processor_of(&schema);
        for text in &texts {
            let fresh = allowed(&processor_of(&schema), text);
            prop_assert_eq!(&allowed(&shared, text), &fresh);
            prop_assert_eq!(&allowed(&shared, text), &fresh);
        }
    }
}
