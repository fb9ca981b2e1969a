//! What the engine cannot do is refused before a text is begun, in one sentence that names the
//! place, within seconds.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::fmt::Write;

use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::{Context, ErrorKind, LogitsProcessor, Result};
use serde_json::{Map, Value, json};

const END: u32 = 256;

fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"\xff<|end|>".to_vec());
    Vocabulary::new(&tokens, &[END]).unwrap()
}

fn compile(grammar: Result<Grammar>) -> Result<GrammarProcessor> {
    GrammarProcessor::new(&vocabulary(), &grammar?)
}

fn schema(schema: &Value) -> Result<GrammarProcessor> {
    compile(Grammar::json_schema(schema))
}

/// Refused, in one sentence without another program's words.
fn refused(outcome: Result<GrammarProcessor>, words: &[&str]) {
    let error = outcome.map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Parameter, "{text}");
    assert!(text.chars().count() <= 400 && !text.contains('\n'), "{text}");
    for foreign in
        ["NoExtension", "backtrace", "panic", "fuel", "lexer", "rec:", "regex for integer"]
    {
        assert!(!text.contains(foreign), "{text}");
    }
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn allowed(processor: &GrammarProcessor, text: &str) -> Vec<u32> {
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let mut scores = vec![0.0; 257];
    processor.process(&Context::new(&tokens, 0), &mut scores).unwrap();
    (0..257).filter(|&id| scores[id as usize] == 0.0).collect()
}

/// Whether a whole text is let through.
fn fits(processor: &GrammarProcessor, text: &str) -> bool {
    let bytes = text.bytes().map(u32::from).enumerate();
    bytes.into_iter().all(|(at, byte)| allowed(processor, &text[..at]).contains(&byte))
        && allowed(processor, text).contains(&END)
}

#[test]
fn integers_are_exact() {
    let processor = schema(&json!({"enum": [9007199254740993_u64, -3]})).unwrap();
    assert!(fits(&processor, "9007199254740993") && fits(&processor, "-3"));
    assert!(!fits(&processor, "9007199254740992"));

    let int64 =
        schema(&json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX})).unwrap();
    for (text, expected) in [
        ("0", true),
        ("-9223372036854775808", true),
        ("-9223372036854775809", false),
        ("9223372036854775807", true),
        ("9223372036854775808", false),
        ("-0", false),
    ] {
        assert_eq!(fits(&int64, text), expected, "{text}");
    }
    // What the schema itself could not keep.
    refused(schema(&json!({"enum": [1e30]})), &["`/enum`", "1e+30", "64 bits"]);
    let rounded: Value =
        serde_json::from_str(r#"{"properties": {"a": {"const": 36893488147419103233}}}"#).unwrap();
    refused(schema(&rounded), &["`/properties/a/const`", "64 bits"]);
    refused(
        schema(&json!({"type": "integer", "minimum": 9007199254740993_u64, "multipleOf": 3})),
        &["`/multipleOf`", "not supported"],
    );
}

#[test]
fn references_that_never_arrive() {
    let itself = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}});
    refused(schema(&itself), &["`/$defs/a`", "`$ref` leads back to itself"]);
    let round = json!({"$ref": "#/$defs/a", "$defs": {
        "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}});
    refused(schema(&round), &["`$ref` leads back to itself"]);
    // With something in between it is a list.
    let list = json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [
        {"type": "null"},
        {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1, "maxItems": 1}]}}});
    assert!(fits(&schema(&list).unwrap(), "[[null]]"));
}

#[test]
fn unknown_formats_are_annotations() {
    let processor = schema(&json!({"type": "object", "properties": {
        "a": {"type": "string", "format": "password", "maxLength": 4},
        "format": {"type": "string", "format": "date"}}, "required": ["a"]}))
    .unwrap();
    assert_eq!(processor.warnings(), ["`/properties/a/format`: \"password\" is not enforced"]);
    assert!(fits(&processor, "{\"a\": \"abc\"}"));
    assert!(!fits(&processor, "{\"a\": \"abc\", \"format\": \"x\"}"));
}

#[test]
fn patterns_that_meet_a_property() {
    let processor = schema(&json!({"type": "object",
        "properties": {"score": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 50}},
        "required": ["score"], "additionalProperties": false,
        "patternProperties": {"^score$": {"type": "integer"}}}))
    .unwrap();
    assert!(fits(&processor, "{\"score\": 45}"));
    assert!(!fits(&processor, "{\"score\": 44}"));
}

#[test]
fn properties_are_counted() {
    let optional = |count: usize, more: Value| {
        let properties: Map<String, Value> =
            (0..count).map(|at| (format!("k{at}"), json!({"type": "boolean"}))).collect();
        let mut schema =
            json!({"type": "object", "properties": properties, "additionalProperties": false});
        for (name, value) in more.as_object().unwrap() {
            schema[name] = value.clone();
        }
        schema
    };
    let one = schema(&optional(50, json!({"minProperties": 1}))).unwrap();
    assert!(fits(&one, "{\"k7\": true}") && fits(&one, "{\"k0\": true, \"k49\": false}"));
    assert!(!fits(&one, "{}") && !fits(&one, "{\"k7\": true, \"k7\": true}"));
    let some = schema(&optional(200, json!({"minProperties": 2, "maxProperties": 3}))).unwrap();
    assert!(!fits(&some, "{\"k7\": true}") && fits(&some, "{\"k7\": true, \"k8\": true}"));
    assert!(!fits(&some, "{\"k1\": true, \"k2\": true, \"k3\": true, \"k4\": true}"));
    refused(schema(&optional(3, json!({"minProperties": 4}))), &["no object can have as many"]);
    refused(schema(&optional(2000, json!({"minProperties": 100}))), &[]);
}

#[test]
fn white_space_is_bounded_within_lark() {
    let json = r#"{"type":"object","properties":{"a":{"type":"integer","format":"int32"}},"required":["a"]}"#;
    let grammar = Grammar::lark(&format!(
        "// %json is data here\nstart: \"%json \" %json {json} /[a-z\"]/\n"
    ));
    assert_eq!(grammar.as_ref().unwrap().warnings().len(), 1);
    let processor = compile(grammar).unwrap();
    for text in ["%json {", "%json {\"a\": ", "%json {\"a\": 1"] {
        let next = allowed(&processor, text);
        assert!(
            ![b' ', b'\n', b'\t'].iter().any(|it| next.contains(&u32::from(*it))),
            "{text}: {next:?}"
        );
    }
    assert!(fits(&processor, "%json {\"a\": 12}x"));
}

#[test]
fn places_are_named() {
    refused(
        schema(
            &json!({"type": "object", "properties": {"a/b": {"type": "array", "items": {"not": {"type": "null"}}}}}),
        ),
        &["`/properties/a~1b/items`", "`not`", "not supported"],
    );
    refused(
        schema(
            &json!({"properties": {"n": {"type": "integer", "minimum": 5, "maximum": 2}}, "required": ["n"], "type": "object"}),
        ),
        &["`/properties/n`", "no value can satisfy"],
    );
    refused(
        schema(
            &json!({"type": "object", "properties": {"x": {"type": "number", "multipleOf": 0.00000000001}}}),
        ),
        &["`/properties/x/multipleOf`"],
    );
    refused(
        schema(&json!({"type": "integer", "multipleOf": 1_000_003})),
        &["`/multipleOf`", "10000"],
    );
    refused(
        schema(&json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]})),
        &["`oneOf`", "`anyOf`"],
    );
    refused(
        schema(&json!({"type": "array", "items": {"$ref": "http://example.com/a.json"}})),
        &["`/items`", "`$ref`", "\"http://example.com/a.json\"", "within the schema"],
    );
    refused(schema(&json!({"$ref": "#/%ZZ"})), &["`$ref` \"#/%ZZ\" is not a reference"]);
    refused(
        schema(&json!({"type": "string", "format": "uuid", "maxLength": 3})),
        &["no value can satisfy it", "excludes itself"],
    );
    refused(schema(&json!(false)), &["no value can satisfy it"]);
    for anchored in ["a^b", r"\bfoo\b", "(?m)^a$"] {
        refused(compile(Grammar::regex(anchored)), &["`^`", "at the beginning"]);
    }
    refused(compile(Grammar::lark("start: <[999999999999]>")), &["a number in it is too large"]);
    refused(compile(Grammar::lark("start: \"a\" missing")), &["grammar"]);
    refused(compile(Grammar::regex("(a")), &["regular expression"]);
}

#[test]
fn what_is_too_large() {
    let mut alternatives = String::from("start: \"option 0\"");
    (1..2500).for_each(|at| write!(alternatives, " | \"option {at}\"").unwrap());
    refused(compile(Grammar::lark(&alternatives)), &["alternatives", "2000"]);

    let chain = |len: usize| {
        let mut chain = String::from("start: r0\n");
        (0..len).for_each(|at| writeln!(chain, "r{at}: \"a\" r{}", at + 1).unwrap());
        chain + &format!("r{len}: \"b\"\n")
    };
    refused(compile(Grammar::lark(&chain(50_000))), &["rules", "10000"]);
    let _ = compile(Grammar::lark(&chain(9_000)))
        .map_err(|e| assert!(e.to_string().len() < 400, "{e}"));

    // Each text has more derivations than could be counted.
    let doubled: String =
        (0..500).map(|at| format!("r{at}: r{} r{} | \"x\"\n", at + 1, at + 1)).collect();
    let doubled = Grammar::lark(&format!("start: r0\n{doubled}r500: \"y\"\n"));
    assert_eq!(allowed(&compile(doubled).unwrap(), ""), [u32::from(b'x'), u32::from(b'y')]);

    for expression in [
        "(a?){100000}",
        "(a{1000}){1000}",
        "((a|b)?c?){20000}",
        "(.{1,2000}x){1,2000}",
        "[a-z]{1000000}",
    ] {
        let _ = compile(Grammar::regex(expression)).map_err(|e| {
            assert!(e.to_string().len() < 400 && !e.to_string().contains('\n'), "{e}")
        });
    }
    refused(compile(Grammar::regex(&"a".repeat(100_000))), &["too long"]);
    refused(compile(Grammar::regex(&".*".repeat(5000))), &["2000 quantifiers"]);
    refused(compile(Grammar::lark("start: (\"a\"?)~200000")), &["more than 10000 times"]);
    refused(compile(Grammar::lark("start: \"a\" ~ 0..99999999999999999999")), &["10000"]);
    let optional = "\"a\"? ".repeat(100_000);
    let _ = compile(Grammar::lark(&format!("start: {optional}")))
        .map_err(|e| assert!(e.to_string().len() < 400, "{e}"));

    let deep =
        (0..200).fold(json!({"type": "null"}), |it, _| json!({"type": "array", "items": it}));
    refused(schema(&deep), &["nested"]);
    let brackets = format!("{}a{}", "(".repeat(30_000), ")".repeat(30_000));
    refused(compile(Grammar::regex(&brackets)), &[]);
    refused(
        compile(Grammar::lark(&format!(
            "start: {}\"a\"{}",
            "(".repeat(30_000),
            ")".repeat(30_000)
        ))),
        &[],
    );
}
