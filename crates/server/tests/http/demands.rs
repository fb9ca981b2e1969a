//! What the grammars of demanded calls let through, against what is then read of it.

use mlx_genkit::{
    grammars::{Grammar, GrammarProcessor, Vocabulary},
    logits_processors::Context,
    tokenizer_bridge::{CallFormat, CallGrammar, CallReader, Written},
};
use serde_json::{Value, json};

use CallFormat::{Functions, Glm, Harmony, Hermes, Llama, Mistral, MistralArgs};

const END: u32 = 256;
/// A special token.
const MARK: u32 = 257;

fn tools() -> Vec<Value> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "kind": {"enum": ["a", "b"]},
            "spot": {"$ref": "#/$defs/spot"},
        },
        "required": ["city"],
        "additionalProperties": false,
        "$defs": {
            "spot": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false},
        },
    });
    vec![
        json!({"type": "function", "function": {"name": "weather", "parameters": parameters}}),
        json!({"type": "function", "function": {"name": "tide"}}),
    ]
}

/// A grammar over bytes, and `mark` where it is one token.
fn compiled(grammar: &CallGrammar, mark: Option<&str>) -> GrammarProcessor {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"\xff<|end|>".to_vec());
    tokens.push([b"\xff", mark.unwrap_or("<|mark|>").as_bytes()].concat());
    let vocabulary = Vocabulary::new(&tokens, &[END]).unwrap();
    let lark = grammar.to_lark(|word| (Some(word) == mark).then_some(MARK));
    let grammar = Grammar::lark(&lark).unwrap();
    GrammarProcessor::new(&vocabulary, &grammar).unwrap_or_else(|e| panic!("{e}: {lark}"))
}

/// Whether a text is let through whole.
fn fits(processor: &GrammarProcessor, text: &str, mark: Option<&str>) -> bool {
    let mut tokens = Vec::new();
    let parts = text.split(mark.unwrap_or("\0"));
    for (at, part) in parts.enumerate() {
        tokens.extend((at > 0).then_some(MARK));
        tokens.extend(part.bytes().map(u32::from));
    }
    processor.is_complete(&Context::new(&tokens, 0)).unwrap_or(false)
}

#[track_caller]
fn check(format: CallFormat, mark: Option<&str>, right: &[&str], wrong: &[&str]) {
    for only_one in [false, true] {
        let grammar = CallGrammar::new(format, &tools()).only_one(only_one);
        let processor = compiled(&grammar, mark);
        for text in right {
            let mut reader = CallReader::new(format, &tools());
            let mut written = reader.push(text);
            written.extend(reader.finish());
            let calls = written.len();
            assert!(written.iter().all(|it| matches!(it, Written::Call(_))), "{text}: {written:?}");
            let is_wanted = calls == 1 || !only_one && format != Llama;
            assert_eq!(fits(&processor, text, mark), is_wanted, "{format:?} {only_one}: {text}");
        }
        for text in wrong {
            assert!(!fits(&processor, text, mark), "{format:?}: {text}");
        }
    }
}

#[test]
fn calls_in_json_fit_the_schema() {
    let weather = "{\"city\": \"Brest\", \"days\": 2, \"kind\": \"a\", \"spot\": {\"x\": 1}}";
    let hermes = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let (first, second) = (hermes("weather", weather), hermes("tide", "{}"));
    check(
        Hermes,
        None,
        &[&first, &second, &format!("{first}\n{second}")],
        &[
            "",
            "Hello",
            &hermes("storm", "{}"),
            &hermes("tide", "{\"a\": 1}"),
            &hermes("weather", "{\"city\": 5}"),
            &hermes("weather", "{}"),
            &format!("{first} And?"),
        ],
    );
    let listed = format!("{{\"name\": \"weather\", \"arguments\": {weather}}}");
    let both = format!("[TOOL_CALLS][{listed}, {listed}]");
    for mark in [None, Some("[TOOL_CALLS]")] {
        let (one, wrong) = (format!("[TOOL_CALLS][{listed}]"), format!("[{listed}]"));
        check(Mistral, mark, &[&one, &both], &[&wrong, "[TOOL_CALLS][]"]);
        let (one, wrong) =
            (format!("[TOOL_CALLS]weather[ARGS]{weather}"), format!("weather[ARGS]{weather}"));
        check(
            MistralArgs,
            mark,
            &[&one, "[TOOL_CALLS]tide[ARGS]{}", &format!("{one}{one}")],
            &[&wrong],
        );
    }
    let one = format!("{{\"name\": \"weather\", \"parameters\": {weather}}}");
    check(
        Llama,
        None,
        &[&one],
        &["{\"name\": \"storm\", \"parameters\": {}}", &format!("{one}; {one}")],
    );
}

#[test]
fn calls_between_tags_fit_the_schema() {
    let call = |parameters: &str| {
        format!("<tool_call>\n<function=weather>\n{parameters}</function>\n</tool_call>")
    };
    let parameter =
        |name: &str, value: &str| format!("<parameter={name}>\n{value}\n</parameter>\n");
    let city = parameter("city", "Brest\n</p> \"Recouvrance\"");
    let rest = [("days", "2"), ("kind", "b"), ("spot", "{\"x\": 1}")];
    let rest: String = rest.map(|(name, value)| parameter(name, value)).concat();
    let tide = "<tool_call>\n<function=tide>\n</function>\n</tool_call>";
    check(
        Functions,
        None,
        &[&call(&city), &call(&format!("{city}{rest}")), tide, &format!("{tide}\n{tide}")],
        &[
            &call(""),
            &call(&rest),
            &call(&format!("{city}{}", parameter("days", "two"))),
            &call(&format!("{city}{}", parameter("kind", "c"))),
            &call(&format!("{city}{}", parameter("spot", "{}"))),
            &call(&format!("{city}{}", parameter("other", "1"))),
        ],
    );
}

#[test]
fn calls_of_pairs_fit_the_schema() {
    for (line_end, mark) in
        [("\n", None), ("", None), ("\n", Some("</arg_value>")), ("", Some("<tool_call>"))]
    {
        let call = |pairs: &str| format!("<tool_call>weather{line_end}{pairs}</tool_call>");
        let pair = |key: &str, value: &str| {
            format!("<arg_key>{key}</arg_key>{line_end}<arg_value>{value}</arg_value>{line_end}")
        };
        let city = pair("city", "Brest\n</p> \"Recouvrance\"");
        let rest = [("days", "2"), ("kind", "b"), ("spot", "{\"x\": 1}")];
        let rest: String = rest.map(|(key, value)| pair(key, value)).concat();
        let tide = format!("<tool_call>tide{line_end}</tool_call>");
        check(
            Glm,
            mark,
            &[&call(&city), &call(&format!("{city}{rest}")), &tide, &format!("{tide}\n{tide}")],
            &[
                &call(""),
                &call(&rest),
                &call(&format!("{city}{}", pair("days", "two"))),
                &call(&format!("{city}{}", pair("kind", "c"))),
                &call(&format!("{city}{}", pair("spot", "{}"))),
                &call(&format!("{city}{}", pair("other", "1"))),
            ],
        );
    }
}

#[test]
fn calls_in_messages_fit_the_schema() {
    let head = |name: &str| {
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
    };
    let weather = format!("{}{{\"city\": \"Brest\"}}", head("weather"));
    let thought = "<|channel|>analysis<|message|>The\nsea.<|end|><|start|>assistant";
    for mark in [None, Some("<|end|>"), Some("<|message|>")] {
        let processor = compiled(&CallGrammar::new(Harmony, &tools()), mark);
        for (text, expected) in [
            (weather.clone(), true),
            (format!("{}{{}}", head("tide")), true),
            (format!("{thought}{weather}"), true),
            (format!("{thought}{thought}{weather}"), false),
            (format!("{}{{}}", head("weather")), false),
            (format!("{}{{}}", head("storm")), false),
            (thought.to_owned(), false),
            ("<|channel|>final<|message|>No.".to_owned(), false),
        ] {
            assert_eq!(fits(&processor, &text, mark), expected, "{mark:?}: {text}");
            let mut reader = CallReader::new(Harmony, &tools());
            let mut written = reader.push(&text);
            written.extend(reader.finish());
            assert!(!expected || matches!(written.last(), Some(Written::Call(_))), "{written:?}");
        }
    }
}

#[test]
fn thinking_that_the_prompt_begins_comes_first() {
    let grammar = CallGrammar::new(Hermes, &tools()).after("<think>\n").only_one(true);
    let processor = compiled(&grammar, None);
    let call = "<tool_call>\n{\"name\": \"tide\", \"arguments\": {}}\n</tool_call>";
    for (text, expected) in [
        (format!("The tide, then.\n</think>\n\n{call}"), true),
        (format!("</think>{call}"), true),
        (call.to_owned(), false),
        ("Only thoughts.\n</think>\n\n".to_owned(), false),
    ] {
        assert_eq!(fits(&processor, &text, None), expected, "{text}");
    }
}
