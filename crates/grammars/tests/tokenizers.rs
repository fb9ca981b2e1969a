//! Grammars over tokenizers of every published shape: what is forced, what special tokens stand for,
//! and which texts are let through.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod shapes;

use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::{Context, LogitsProcessor};
use serde_json::json;
use shapes::Shape;

fn processor(shape: &Shape, grammar: &Grammar) -> GrammarProcessor {
    let vocabulary = Vocabulary::from_tokenizer(&shape.tokenizer, &[shape.end]).unwrap();
    GrammarProcessor::new(&vocabulary, grammar).unwrap()
}

/// The ids allowed after generated tokens.
fn allowed(shape: &Shape, processor: &GrammarProcessor, tokens: &[u32]) -> Vec<u32> {
    let all = [&shape.prompt[..], tokens].concat();
    let mut scores = vec![0.0; shape.tokenizer.texts().len()];
    processor.process(&Context::new(&all, shape.prompt.len()), &mut scores).unwrap();
    (0..scores.len() as u32).filter(|id| scores[*id as usize] == 0.0).collect()
}

/// Follows a grammar that leaves no choice.
fn only_text(shape: &Shape, grammar: &Grammar) -> String {
    let processor = processor(shape, grammar);
    let mut tokens = Vec::new();
    loop {
        let allowed = allowed(shape, &processor, &tokens);
        if allowed.contains(&shape.end) {
            assert_eq!(allowed, [shape.end], "{}", shape.name);
            return shape.text(&tokens);
        }
        assert!(!shape.tokenizer.is_special(allowed[0]), "{}: {tokens:?}", shape.name);
        tokens.push(allowed[0]);
        assert!(tokens.len() < 200, "{}: {tokens:?}", shape.name);
    }
}

#[test]
fn the_spelling_of_a_special_token_is_text() {
    for shape in shapes::all() {
        for text in ["a<|im_end|>b", "</s>", "<eos>", "[SEP]", "<|im_end|>", "<mask>", "a  b   c"] {
            let regex = Grammar::regex(&regex::escape(text)).unwrap();
            assert_eq!(only_text(&shape, &regex), text, "{}", shape.name);
            let schema = Grammar::json_schema(&json!({"const": text})).unwrap();
            assert_eq!(only_text(&shape, &schema), json!(text).to_string(), "{}", shape.name);
        }
    }
}

#[test]
fn texts_that_fit_are_let_through_as_the_tokenizer_writes_them() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"}, "n": {"type": "integer"}, "on": {"type": "boolean"},
        },
        "required": ["name"],
        "additionalProperties": false,
    });
    let object = Grammar::json_schema(&schema).unwrap();
    let spaces = Grammar::json_schema(&json!({"enum": ["a  b", "a   b", " the name"]})).unwrap();
    for shape in shapes::all() {
        for (grammar, text) in [
            (&object, "{\"name\": \"the blue name\"}"),
            (&object, "{\"name\": \"  \", \"n\": -1200, \"on\": true}"),
            (&object, "{\"name\": \"a\\nb </s> <|im_end|>\", \"on\": false}"),
            (&spaces, "\"a  b\""),
            (&spaces, "\"a   b\""),
            (&spaces, "\" the name\""),
        ] {
            let processor = processor(&shape, grammar);
            let Some(tokens) = shape.tokenizer.encode_continuation(text) else {
                // BERT's normalizers and splits do not keep every text.
                assert!(
                    ["WordPiece", "Unigram"].contains(&shape.name.as_str()),
                    "{}: {text}",
                    shape.name
                );
                continue;
            };
            for at in 0..tokens.len() {
                let allowed = allowed(&shape, &processor, &tokens[..at]);
                assert!(
                    allowed.contains(&tokens[at]),
                    "{}: {text} at {at} of {tokens:?}",
                    shape.name
                );
            }
            assert!(allowed(&shape, &processor, &tokens).contains(&shape.end), "{}", shape.name);
        }
    }
}

#[test]
fn forced_text_is_written_as_in_the_middle_of_a_text() {
    let grammar = Grammar::regex("\\{\"name\": [01]\\}").unwrap();
    for shape in shapes::all() {
        let processor = processor(&shape, &grammar);
        let context = Context::new(&shape.prompt, shape.prompt.len());
        let forced = processor.forced_tokens(&context).unwrap();
        if ["WordPiece", "Unigram"].contains(&shape.name.as_str()) {
            // Not every byte is a token, so nothing is forced; what is allowed is as good.
            assert!(forced.is_empty(), "{}: {forced:?}", shape.name);
            continue;
        }
        let own = shape.tokenizer.encode_continuation("{\"name\": ").unwrap();
        assert!(!forced.is_empty() && own.starts_with(&forced), "{}: {forced:?}", shape.name);
        assert!("{\"name\": ".starts_with(&shape.text(&forced)), "{}", shape.name);
    }
}

#[test]
fn runs_of_spaces_are_spaces() {
    for shape in shapes::all() {
        let processor = processor(&shape, &Grammar::regex("a[^ ]+b").unwrap());
        let a = shape.tokenizer.encode_continuation("a").unwrap();
        for id in allowed(&shape, &processor, &a) {
            let text = shape.tokenizer.texts().bytes(id).unwrap();
            assert!(!text.contains(&b' '), "{}: {id} is {text:?}", shape.name);
        }
    }
}

/// An end token that is a word elsewhere is not part of the text.
#[test]
fn only_the_end_ends_a_text() {
    for shape in shapes::all() {
        let word = shape.tokenizer.encode_continuation("b").unwrap()[0];
        let vocabulary = Vocabulary::from_tokenizer(&shape.tokenizer, &[shape.end, word]).unwrap();
        let grammar = Grammar::regex("a+").unwrap();
        let plain = GrammarProcessor::new(&vocabulary, &grammar).unwrap();
        let ends = allowed(&shape, &plain, &shape.tokenizer.encode_continuation("a").unwrap());
        assert!(ends.contains(&word) && ends.contains(&shape.end), "{}", shape.name);
        let grammar = Grammar::regex("a[bc]").unwrap();
        let other = GrammarProcessor::new(&vocabulary, &grammar).unwrap();
        let next = allowed(&shape, &other, &shape.tokenizer.encode_continuation("a").unwrap());
        assert!(!next.contains(&word) && !next.contains(&shape.end), "{}: {next:?}", shape.name);
    }
}

/// The tables are built once per set of end tokens and shared by all copies.
#[test]
fn copies_share_what_was_built() {
    let shape = &shapes::all()[3];
    let vocabulary = Vocabulary::from_tokenizer(&shape.tokenizer, &[shape.end]).unwrap();
    let other = vocabulary.with_eos(&[shape.end]).unwrap();
    for vocabulary in [&vocabulary, &other, &vocabulary.clone()] {
        let grammar = Grammar::regex("ab").unwrap();
        GrammarProcessor::new(vocabulary, &grammar).unwrap();
    }
    assert!(vocabulary.with_eos(&[]).is_err());
}
