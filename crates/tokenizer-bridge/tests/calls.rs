//! Calls in every form, whole and broken, over all ways to cut the text into pieces.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_tokenizer_bridge::{CallFormat, CallReader, ChatTemplate, ToolCall, Written};
use serde_json::{Value, json};

use CallFormat::{Functions, Glm, Harmony, Hermes, Llama, Mistral, MistralArgs};

fn tools() -> Vec<Value> {
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    vec![
        tool(
            "weather",
            json!({"type": "object", "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "wind": {"type": ["number", "null"]},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "exact": {"type": "boolean"},
                "near": {"enum": [1, 2]},
                "kind": {"enum": ["1", "2"]},
                "list": {"type": "array"},
                "any": {},
                "spot": {"$ref": "#/$defs/spot"},
                "sky": {"allOf": [{"$ref": "#/$defs/sky"}]},
                "loop": {"$ref": "#/$defs/loop"},
            }, "$defs": {
                "spot": {"type": "object"},
                "sky": {"enum": ["1", "2"]},
                "loop": {"$ref": "#/$defs/loop"},
            }}),
        ),
        json!({"type": "function", "function": {"name": "tide"}}),
    ]
}

/// What is written in a form, as `text`, `(thought)` and `name(arguments)`.
fn read(format: CallFormat, prompt: &str, text: &str, only_one: bool) -> Vec<String> {
    let lengths = [text.len().max(1), 1, 2, 3, 7];
    let mut all = lengths.map(|length| {
        let mut reader = CallReader::new(format, &tools()).after(prompt).only_one(only_one);
        let mut written = Vec::new();
        let letters: Vec<char> = text.chars().collect();
        for piece in letters.chunks(length) {
            written.extend(reader.push(&piece.iter().collect::<String>()));
        }
        written.extend(reader.finish());
        // What pieces cut is put together again.
        let mut joined: Vec<Written> = Vec::new();
        for it in written {
            match (it, joined.last_mut()) {
                (Written::Text(part) | Written::Thought(part), _) if part.is_empty() => {
                    panic!("an empty part of {text:?}")
                }
                (Written::Text(part), Some(Written::Text(before)))
                | (Written::Thought(part), Some(Written::Thought(before))) => {
                    before.push_str(&part)
                }
                (it, _) => joined.push(it),
            }
        }
        let shown = |it: &Written| match it {
            Written::Text(text) => text.clone(),
            Written::Thought(thought) => format!("({thought})"),
            Written::Call(ToolCall { name, arguments }) => {
                assert!(serde_json::from_str::<Value>(arguments).unwrap().is_object());
                format!("{name}({arguments})")
            }
        };
        joined.iter().map(shown).collect::<Vec<_>>()
    });
    let [whole, pieces @ ..] = &all;
    for it in pieces {
        assert_eq!(it, whole, "{format:?} {text:?}");
    }
    std::mem::take(&mut all[0])
}

#[track_caller]
fn check(format: CallFormat, text: &str, expected: &[&str]) {
    assert_eq!(read(format, "", text, false), expected, "{format:?} {text:?}");
}

/// What is not a call is the text that it was.
#[track_caller]
fn stays(format: CallFormat, text: &str) {
    check(format, text, &[text]);
}

#[test]
fn calls_between_tags_are_read() {
    let open = "<tool_call>\n{\"name\": \"weather\", \"arguments\": ";
    for format in [Hermes, Functions] {
        check(
            format,
            &format!("{open}{{\"city\": \"Brest\"}}}}\n</tool_call>"),
            &["weather({\"city\": \"Brest\"})"],
        );
        check(format, &format!("{open}{{}}}}\n</tool_call>\nDone.\n"), &["weather({})", "Done.\n"]);
        check(
            format,
            &format!(
                "I look.\n\n{open}{{}}}}\n</tool_call>\n<tool_call>{{\"name\":\"tide\"}}</tool_call>\nDone.\n"
            ),
            &["I look.", "weather({})", "tide({})", "\nDone.\n"],
        );
    }
    // Arguments are what was written, to the last digit and letter.
    check(
        Hermes,
        &format!(
            "{open}{{\"a\":1.50, \"b\": 12345678901234567890123, \"c\": \"\\u00e9\"}}}}</tool_call>"
        ),
        &["weather({\"a\":1.50, \"b\": 12345678901234567890123, \"c\": \"\\u00e9\"})"],
    );
    // A tag within a text ends nothing, arguments may be a text, an end token may take the last tag's place.
    check(
        Hermes,
        &format!("{open}{{\"city\": \"</tool_call>\"}}}}</tool_call>"),
        &["weather({\"city\": \"</tool_call>\"})"],
    );
    check(
        Hermes,
        &format!("{open}\"{{\\\"days\\\": 2}}\"}}</tool_call>"),
        &["weather({\"days\": 2})"],
    );
    check(Hermes, &format!("{open}null}}"), &["weather({})"]);
    check(
        Hermes,
        "<tool_call>{\"arguments\": {}, \"id\": 7, \"name\": \"tide\"}</tool_call>",
        &["tide({})"],
    );
}

#[test]
fn what_only_looks_like_a_call_stays_text() {
    for text in [
        "",
        "Hello <tool> </tool_call>\n",
        "<tool_call>",
        "<tool_call>\n</tool_call>",
        "a <tool_call>weather</tool_call> b",
        "a\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Br",
        "<tool_call>{\"name\": \"weather\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"weather\", \"arguments\": \"Brest\"}</tool_call> x",
        "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": 'Brest'}}</tool_call>",
        "<tool_call>{\"name\": \"weather\", \"arguments\": {},}</tool_call>",
        "<tool_call>{\"name\": \"weather\", \"arguments\": {}} {}</tool_call>",
        "<tool_call>{\"name\": \"storm\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 7}</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>[{\"name\": \"tide\"}]</tool_call>",
        "<tool_call>{\"name\": \"tide\", \"arguments\": {\"a\": 1e999}}</tool_call>",
        "<tool_call><function=storm></function></tool_call>",
        "<tool_call><function=tide><parameter=a>1</function></tool_call>",
        "<tool_call><function=tide>a</function></tool_call>",
        "<tool_call><function=tide</function></tool_call>",
        "{\"name\": \"tide\", \"arguments\": {}}",
        "<think>\n<tool_call>{\"name\": \"tide\"}</tool_call>\n</think>\nWell.",
        "<think><tool_call>{\"name\": \"tide\"}</tool_call>",
    ] {
        let expected: &[&str] = if text.is_empty() { &[] } else { &[text] };
        check(Hermes, text, expected);
        check(Functions, text, expected);
    }
    // A call behind one that is none.
    check(
        Hermes,
        "<tool_call>x</tool_call>\n<tool_call>{\"name\": \"tide\"}</tool_call>",
        &["<tool_call>x</tool_call>", "tide({})"],
    );
}

#[test]
fn thinking_is_text() {
    let text = "<tool_call>{\"name\": \"tide\"}</tool_call>\n</think>\n\n<tool_call>{\"name\": \"tide\"}</tool_call>";
    let thought = "<tool_call>{\"name\": \"tide\"}</tool_call>\n</think>";
    assert_eq!(read(Hermes, "…<think>\n", text, false), [thought, "tide({})"]);
    assert_eq!(
        read(Hermes, "", &format!("<think>{text}"), false),
        [&format!("<think>{thought}"), "tide({})"]
    );
}

#[test]
fn only_the_first_call_is_read_where_one_is_wanted() {
    let two = "Now. <tool_call>{\"name\": \"tide\"}</tool_call>\n<tool_call>{\"name\": \"weather\"}</tool_call> x";
    assert_eq!(read(Hermes, "", two, true), ["Now.", "tide({})"]);
    let two = "[TOOL_CALLS][{\"name\": \"tide\"}, {\"name\": \"weather\"}]";
    assert_eq!(read(Mistral, "", two, true), ["tide({})"]);
}

#[test]
fn arguments_between_tags_have_the_types_of_the_schema() {
    let call = |name: &str, value: &str| {
        format!(
            "<tool_call>\n<function=weather>\n<parameter={name}>\n{value}\n</parameter>\n</function>\n</tool_call>"
        )
    };
    for (name, value, expected) in [
        ("city", "Brest", json!("Brest")),
        ("city", "29", json!("29")),
        ("city", " two\nlines\n", json!(" two\nlines\n")),
        ("city", "</parameter> of", json!("</parameter> of")),
        ("city", "null", json!("null")),
        ("days", "29", json!(29)),
        ("days", "many", json!("many")),
        ("wind", "1.5", json!(1.5)),
        ("wind", "null", json!(null)),
        ("wind", "None", json!(null)),
        ("note", "null", json!(null)),
        ("note", "5", json!("5")),
        ("exact", "True", json!(true)),
        ("exact", "false", json!(false)),
        ("near", "2", json!(2)),
        ("kind", "2", json!("2")),
        ("list", "[1, \"a\"]", json!([1, "a"])),
        ("any", "{\"a\": 1}", json!({"a": 1})),
        ("any", "7", json!("7")),
        ("spot", "{\"x\": 1}", json!({"x": 1})),
        ("sky", "2", json!("2")),
        ("loop", "7", json!("7")),
        ("unknown", "7", json!("7")),
    ] {
        check(Functions, &call(name, value), &[&format!("weather({})", json!({name: expected}))]);
    }
    check(
        Functions,
        "<tool_call><function=weather><parameter=city>Brest</parameter><parameter=days>2</parameter></function></tool_call>",
        &["weather({\"city\":\"Brest\",\"days\":2})"],
    );
    check(Functions, "<tool_call>\n<function=tide>\n</function>\n</tool_call>", &["tide({})"]);
}

#[test]
fn glms_arguments_are_pairs() {
    let pair = |key: &str, value: &str| {
        format!("<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n")
    };
    let call = |pairs: &str| format!("<tool_call>weather\n{pairs}</tool_call>");
    for (name, value, expected) in [
        ("city", "Brest", json!("Brest")),
        ("city", "29", json!("29")),
        ("city", "\n two\nlines \n", json!("\n two\nlines \n")),
        ("city", "</arg_value> of </tool_call>", json!("</arg_value> of </tool_call>")),
        ("days", "29", json!(29)),
        ("days", " 29\n", json!(29)),
        ("exact", "true", json!(true)),
        ("list", "[1, \"a\"]", json!([1, "a"])),
        ("spot", "{\"x\": 1}", json!({"x": 1})),
    ] {
        check(Glm, &call(&pair(name, value)), &[&format!("weather({})", json!({name: expected}))]);
    }
    check(
        Glm,
        "I look.\n<tool_call>weather<arg_key>city</arg_key><arg_value>Brest</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call>\n<tool_call>tide</tool_call>\n",
        &["I look.", "weather({\"city\":\"Brest\",\"days\":2})", "tide({})"],
    );
    check(
        Glm,
        "<think>The <tool_call>tide</tool_call>.</think>\n<tool_call>tide\n</tool_call>",
        &["<think>The <tool_call>tide</tool_call>.</think>", "tide({})"],
    );
    for text in [
        "<tool_call>storm</tool_call>",
        "<tool_call>{\"name\": \"tide\", \"arguments\": {}}</tool_call>",
        "<tool_call>tide<arg_key>a</arg_key></tool_call>",
        "<tool_call>tide<arg_key>a<arg_value>b</arg_value></tool_call>",
        "<tool_call>tide<arg_key>a</arg_key><arg_value>b</tool_call>",
        // Broken off: a further argument may be missing.
        "<tool_call>tide",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Brest</arg_value>",
    ] {
        stays(Glm, text);
    }
}

#[test]
fn mistrals_calls_reach_to_the_end() {
    check(
        Mistral,
        "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"days\": 2}}, {\"name\": \"tide\", \"arguments\": {}, \"id\": \"a\"}]",
        &["weather({\"days\": 2})", "tide({})"],
    );
    for text in [
        "[TOOL_CALLS]weather[ARGS]{\"days\": 2}[TOOL_CALLS]tide[CALL_ID]abc[ARGS]{}",
        "[TOOL_CALLS]weather{\"days\": 2}\n[TOOL_CALLS]tide{}",
    ] {
        check(MistralArgs, text, &["weather({\"days\": 2})", "tide({})"]);
    }
    check(MistralArgs, "Now.\n[TOOL_CALLS]tide[ARGS]{}", &["Now.", "tide({})"]);
    for text in [
        "[TOOL_CALLS]",
        "a\n[TOOL_CALLS] [{\"name\": \"tide\"",
        "[TOOL_CALLS] [{\"name\": \"tide\"}] b",
        "[TOOL_CALLS] [{\"name\": \"storm\"}]",
        "[TOOL_CALLS]tide",
        "[TOOL_CALLS]storm[ARGS]{}",
        "[TOOL_CALLS]tide[ARGS][]",
        "[TOOL_CALLS]tide[ARGS]{} b",
        "[{\"name\": \"tide\"}]",
    ] {
        stays(Mistral, text);
        stays(MistralArgs, text);
    }
}

#[test]
fn llamas_calls_are_the_whole_text() {
    let call = "{\"name\": \"weather\", \"parameters\": {\"days\": 2}}";
    for text in [call.to_owned(), format!("\n {call}\n"), format!("<|python_tag|>{call}")] {
        check(Llama, &text, &["weather({\"days\": 2})"]);
    }
    check(
        Llama,
        &format!("{call}; {{\"name\": \"tide\"}}"),
        &["weather({\"days\": 2})", "tide({})"],
    );
    check(Llama, &format!("Now.\n<|python_tag|>{call}"), &["Now.", "weather({\"days\": 2})"]);
    for text in [
        "Hello",
        " {",
        "{\"days\": 2}",
        "{\"name\": \"Anna\", \"parameters\": {}}",
        "<|python_tag|>brave_search.call(query=\"sea\")",
    ] {
        stays(Llama, text);
    }
    stays(Llama, &format!("So: {call}"));
    stays(Llama, &format!("{call} is what I call"));
}

#[test]
fn gpt_oss_writes_messages() {
    let thought = "<|channel|>analysis<|message|>They ask\n for <b>.<|end|>";
    let last = "<|start|>assistant<|channel|>final<|message|>It is 3 < 4.\n<|return|>";
    let call = "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"days\": 2}<|call|>";
    let told = ["(They ask\n for <b>.)", "It is 3 < 4.\n", "weather({\"days\": 2})"];
    for prompt in ["", "<|start|>user<|message|>Hello<|end|><|start|>assistant"] {
        let read = |text: &str| read(Harmony, prompt, text, false);
        assert_eq!(read(&format!("{thought}{last}")), told[..2]);
        for call in [call, call.trim_end_matches("<|call|>")] {
            assert_eq!(read(&format!("{thought}{call}")), [told[0], told[2]]);
        }
        // An end token may have been left out, and thoughts may come in several messages.
        let again = thought.replace("<|channel|>", "<|start|>assistant<|channel|>");
        assert_eq!(
            read(&format!("{thought}{again}{}", last.trim_end_matches("<|return|>"))),
            [&format!("({0}{0})", "They ask\n for <b>."), told[1]]
        );
        // The recipient in the role's place, and a word to the reader before the call.
        assert_eq!(
            read(
                "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.tide<|channel|>commentary json<|message|>{}<|call|>"
            ),
            ["I look.", "tide({})"]
        );
        assert_eq!(read("Hello, <|"), ["Hello, <|"]);
        assert_eq!(read(" toward"), [" toward"]);
        assert_eq!(read("<|channel|>final<|message|>Half"), ["Half"]);
        assert_eq!(read("<|channel|>analysis<|message|>Half"), ["(Half)"]);
        assert_eq!(read("<|channel|>ana"), ["<|channel|>ana"]);
        assert_eq!(read(&format!("{thought}<|start|>assi")), [told[0], "<|start|>assi"]);
    }
    // What is not a call of a tool stays as it is.
    for text in [
        "<|channel|>commentary to=functions.storm <|constrain|>json<|message|>{}",
        "<|channel|>analysis to=python<|message|>1 + 1",
        "<|channel|>commentary to=functions.tide <|constrain|>json<|message|>[]<|call|>",
        "<|channel|>commentary to=functions.tide <|constrain|>json<|message|>{\"a\": 1",
    ] {
        stays(Harmony, text);
    }
    let begun = "<|start|>assistant<|channel|>analysis<|message|>They";
    assert_eq!(read(Harmony, begun, &format!(" ask.<|end|>{last}"), false), ["( ask.)", told[1]]);
    assert_eq!(read(Harmony, "", &format!("{call}{call}{last}"), true), [told[2]]);
}

#[test]
fn the_template_shows_the_form() {
    for (source, expected) in [
        ("{{ '<tool_call>\n{\"name\": \"' }}", Some(Hermes)),
        ("{{ '<tool_call>\n<function=' }}", Some(Functions)),
        ("<tool_call>{{ '<arg_key>' }}", Some(Glm)),
        ("{{ '<seed:tool_call><function=' }}", None),
        ("{{ '<|channel|>analysis<|message|>' }}", Some(Harmony)),
        ("{{ '[TOOL_CALLS] [' }}", Some(Mistral)),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", Some(MistralArgs)),
        ("{{ 'ipython' }}{{ '\"parameters\": ' }}", Some(Llama)),
        ("{{ messages[0].content }}", None),
    ] {
        assert_eq!(ChatTemplate::new(source).unwrap().call_format(), expected, "{source}");
    }
}
