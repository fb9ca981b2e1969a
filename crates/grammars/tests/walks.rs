//! Random walks through what grammars allow end in texts that other implementations accept, over
//! tokenizers of every published shape.
//!
//! `MLXGK_WALKS=10000 cargo test --release -p mlxgk-grammars --test walks` makes so many per shape;
//! `cargo xtask tokenizers` walks over published vocabularies, too.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]
#![allow(clippy::print_stdout, reason = "a long run reports its counts")]

mod shapes;

use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_torch::TorchRng;
use serde_json::Value;
use shapes::Shape;

/// After so many tokens a walk takes what ends it, where that is allowed.
const LONG: usize = 60;
const LONGEST: usize = 2000;

enum Check {
    Schema(jsonschema::Validator),
    Expression(regex::Regex),
}

impl Check {
    fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Schema(schema) => value(text).is_some_and(|value| schema.is_valid(&value)),
            Self::Expression(regex) => regex.is_match(text),
        }
    }
}

/// What a text holds as JSON. A number without bounds may be one that a double cannot hold, such as
/// 1e475; serde_json then refuses the text, and it is read without the exponents of its numbers.
fn value(text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Err(e) if e.to_string().starts_with("number out of range") => {
            let exponents = regex::Regex::new(r#"("(?:[^"\\]|\\.)*")|[eE][+-]?[0-9]+"#).unwrap();
            serde_json::from_str(&exponents.replace_all(text, "$1")).ok()
        }
        value => value.ok(),
    }
}

/// The grammars, each with what has to accept its texts.
fn grammars() -> Vec<(String, Grammar, Check)> {
    let cases: Value = serde_json::from_str(include_str!("cases.json")).unwrap();
    let (schemas, expressions) =
        (cases["schemas"].as_array().unwrap(), cases["expressions"].as_array().unwrap());
    assert!(schemas.len() >= 40 && expressions.len() >= 20);
    let schemas = schemas.iter().map(|schema| {
        let check = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
        (schema.to_string(), Grammar::json_schema(schema).unwrap(), Check::Schema(check))
    });
    let expressions = expressions.iter().map(|it| {
        let text = it.as_str().unwrap();
        let check = regex::Regex::new(&format!("^(?s:{text})$")).unwrap();
        (text.to_owned(), Grammar::regex(text).unwrap(), Check::Expression(check))
    });
    schemas.chain(expressions).collect()
}

/// One random text of a grammar.
fn walk(shape: &Shape, processor: &GrammarProcessor, random: &mut TorchRng) -> Vec<u32> {
    let texts = shape.tokenizer.texts();
    let mut tokens = shape.prompt.clone();
    let prompt = tokens.len();
    loop {
        let mut scores = vec![0.0; texts.len()];
        let context = Context::new(&tokens, prompt);
        processor.process(&context, &mut scores).unwrap();
        let forced = processor.forced_tokens(&context).unwrap();
        let allowed: Vec<u32> =
            (0..scores.len() as u32).filter(|id| scores[*id as usize] == 0.0).collect();
        assert!(!allowed.is_empty(), "{}: nothing is allowed after {tokens:?}", shape.name);
        if let Some(first) = forced.first() {
            assert_eq!(allowed, [*first], "{}: forced, but not the only one", shape.name);
        }
        if allowed.contains(&shape.end) && (allowed.len() == 1 || random.uniform_f32() < 0.3) {
            return tokens.split_off(prompt);
        }
        let made = tokens.len() - prompt;
        assert!(made < LONGEST, "{}: no end of {:?}", shape.name, shape.text(&tokens[prompt..]));
        let ends = |id: &u32| {
            let text = texts.bytes(*id).unwrap_or_default();
            *id == shape.end || [&b"\""[..], b"}", b"]", b"0", b"n", b"b"].contains(&text)
        };
        let ending: Vec<u32> =
            allowed.iter().copied().filter(|id| made > LONG && ends(id)).collect();
        // Not always: what goes on with a 0 may need something else to end.
        let ends_now = !ending.is_empty() && random.uniform_f32() < 0.7;
        let choice = if ends_now { ending } else { allowed };
        let any = (random.uniform_f32() * choice.len() as f32) as usize;
        let token = choice[any.min(choice.len() - 1)];
        if token == shape.end {
            return tokens.split_off(prompt);
        }
        tokens.push(token);
    }
}

/// So many walks per shape, and at least three per grammar.
fn walks_per(grammars: usize) -> usize {
    let walks = std::env::var("MLXGK_WALKS").map_or(0, |it| it.parse().unwrap());
    usize::max(3, walks / grammars + 1)
}

/// Walks through every grammar over one vocabulary; prints how many there were.
fn walk_all(shape: &Shape, grammars: &[(String, Grammar, Check)]) {
    let vocabulary = Vocabulary::from_tokenizer(&shape.tokenizer, &[shape.end]).unwrap();
    let each = walks_per(grammars.len());
    let (mut done, mut refused) = (0, 0);
    for (at, (source, grammar, check)) in grammars.iter().enumerate() {
        let processor = match GrammarProcessor::new(&vocabulary, grammar) {
            Ok(processor) => processor,
            Err(error) => {
                // Only what a vocabulary without bytes cannot spell.
                assert!(
                    error.to_string().contains("no token"),
                    "{}: {source}: {error}",
                    shape.name
                );
                refused += 1;
                continue;
            }
        };
        let mut random = TorchRng::new(at as u64);
        for _ in 0..each {
            let tokens = walk(shape, &processor, &mut random);
            let text = shape.text(&tokens);
            assert!(check.accepts(&text), "{}: {source}\n{text:?}\n{tokens:?}", shape.name);
            let ended = [&shape.prompt[..], &tokens].concat();
            let context = Context::new(&ended, shape.prompt.len());
            assert!(processor.is_complete(&context).unwrap(), "{}: {text:?}", shape.name);
            done += 1;
        }
    }
    println!("{}: {done} walks, {refused} grammars refused", shape.name);
    assert!(refused <= 4, "{}: {refused} grammars refused", shape.name);
}

/// What the walks end in is checked by something that can say no.
#[test]
fn the_checks_refuse_what_does_not_fit() {
    let integers = serde_json::json!({"type": "array", "items": {"type": "integer"}});
    let check = Check::Schema(jsonschema::options().build(&integers).unwrap());
    for (text, fits) in [
        ("[1, 2]", true),
        ("[1, 2.5]", false),
        ("[1, 2", false),
        ("[1, 2] 3", false),
        ("[1e475]", true),
        ("[1e475, \"e5\"]", false),
        ("[1e475, ]", false),
    ] {
        assert_eq!(check.accepts(text), fits, "{text}");
    }
    let check = Check::Expression(regex::Regex::new("^(?s:a|b.)$").unwrap());
    for (text, fits) in [("a", true), ("b\n", true), ("ab", false), ("", false)] {
        assert_eq!(check.accepts(text), fits, "{text}");
    }
}

#[test]
fn walks_end_in_texts_that_fit() {
    let grammars = grammars();
    shapes::all().iter().for_each(|shape| walk_all(shape, &grammars));
}

/// `cargo xtask tokenizers` runs this over what it has downloaded.
#[test]
#[ignore = "takes published tokenizers, in the folders of MLXGK_TOKENIZERS"]
fn walks_over_published_vocabularies_end_in_texts_that_fit() {
    let folders = std::env::var("MLXGK_TOKENIZERS").unwrap();
    let grammars = grammars();
    for folder in std::env::split_paths(&folders) {
        walk_all(&Shape::published(&folder), &grammars);
    }
}
