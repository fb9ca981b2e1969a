//! Calls of tools: what a model writes in its template's form is told as calls, and messages about calls go to the
//! template.

use std::fs;

use mlx_genkit::{ComputeDtype, Model};
use mlxgk_server::Options;
use serde_json::{Value, json};

use crate::client::{CHAT, TestServer, chat, start, start_model};

/// A template that writes calls as Hermes does, and results under their role.
const HERMES: &str = r#"
{%- if tools %}<|im_start|>system
{{ tools | map(attribute='function') | map(attribute='name') | join(' ') }}<|im_end|>
{% endif -%}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"#;

/// One with gpt-oss's messages.
const HARMONY: &str = r#"
{%- for message in messages %}<|start|>{{ message.role }}
{%- if message.tool_calls %} to=functions.{{ message.tool_calls[0].function.name }}<|channel|>commentary json{% endif -%}
<|message|>{{ message.content or '' }}<|end|>
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif -%}"#;

/// The bundled model with another template, and with a special token of this name in place of its last token.
fn with_template(template: &str, special: Option<&str>) -> Model {
    let folder = tempfile::tempdir().unwrap();
    Model::write_bundled(folder.path()).unwrap();
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    if let Some(name) = special {
        let file = folder.path().join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| *id != LAST);
        vocab.insert(name.to_owned(), LAST.into());
        tokenizer["model"]["merges"].as_array_mut().unwrap().pop();
        let mut added = tokenizer["added_tokens"][0].clone();
        (added["id"], added["content"]) = (LAST.into(), name.into());
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
        fs::write(&file, tokenizer.to_string()).unwrap();
    }
    Model::load(folder.path(), ComputeDtype::Float32).unwrap()
}

/// The last token of the bundled model's vocabulary.
const LAST: u32 = 2559;

fn hermes() -> TestServer {
    start_model(Options::default(), || with_template(HERMES, None))
}

fn tools() -> Value {
    let port = json!({"type": "object", "properties": {"port": {"enum": ["Brest", "Cork"]}}, "required": ["port"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "tide", "description": "When the tide is high", "parameters": port}},
        {"type": "function", "function": {"name": "moon"}},
    ])
}

/// Fields of a chat with tools in which the model writes exactly this.
fn writing(text: &str) -> Value {
    let grammar = format!("start: {}", Value::from(text));
    json!({"tools": tools(), "grammar": grammar, "max_tokens": 200})
}

/// What the chunks of a stream come to: content, calls, the reason.
fn streamed(server: &TestServer, fields: &Value) -> (String, Vec<Value>, Value) {
    let events = server.events(CHAT, &chat("When?", fields.clone()));
    let (mut content, mut calls, mut reason) = (String::new(), Vec::<Value>::new(), Value::Null);
    for event in &events[..events.len() - 1] {
        let choice = serde_json::from_str::<Value>(event).unwrap()["choices"][0].clone();
        let delta = &choice["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            assert_eq!(call["index"], calls.len());
            let mut call = call.clone();
            call.as_object_mut().unwrap().remove("index");
            calls.push(call);
        }
        reason = choice["finish_reason"].clone();
    }
    (content, calls, reason)
}

/// The name and arguments of calls, whose ids are checked.
#[track_caller]
fn named(calls: &[Value]) -> Vec<(String, String)> {
    let mut ids: Vec<&str> = Vec::new();
    let name = |call: &Value| {
        let text = |it: &Value| it.as_str().unwrap().to_owned();
        (text(&call["function"]["name"]), text(&call["function"]["arguments"]))
    };
    for call in calls {
        assert_eq!(call["type"], "function");
        ids.push(call["id"].as_str().unwrap());
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), calls.len(), "each has an id of its own");
    calls.iter().map(name).collect()
}

#[test]
fn calls_are_told_whole_and_in_a_stream() {
    let server = hermes();
    let text = "One moment.\n<tool_call>\n{\"name\": \"tide\", \"arguments\": {\"port\": \"Brest\"}}\n</tool_call>\n<tool_call>{\"name\": \"moon\"}</tool_call>";
    let expected = [("tide", "{\"port\": \"Brest\"}"), ("moon", "{}")];
    let expected = expected.map(|(name, arguments)| (name.to_owned(), arguments.to_owned()));
    let choice = server.chat("When?", writing(text))["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "One moment.");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(named(calls), expected);
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"));
    let (content, calls, reason) = streamed(&server, &writing(text));
    assert_eq!((content.as_str(), reason), ("One moment.", json!("tool_calls")));
    assert_eq!(named(&calls), expected);
    // Without text there is none.
    let text = "<tool_call>{\"name\": \"moon\"}</tool_call>";
    let message = server.chat("When?", writing(text))["choices"][0]["message"].clone();
    assert_eq!(
        (&message["content"], message["tool_calls"].as_array().unwrap().len()),
        (&Value::Null, 1)
    );
    assert_eq!(streamed(&server, &writing(text)).0, "");
}

#[test]
fn what_is_no_call_stays_text() {
    let server = hermes();
    for text in [
        "Now <tool_call>{\"name\": \"tide\", \"arguments\": {}</tool_call> and then",
        "<tool_call>{\"name\": \"storm\", \"arguments\": {}}</tool_call>",
        "At six.",
    ] {
        let choice = server.chat("When?", writing(text))["choices"][0].clone();
        assert_eq!(choice["message"], json!({"role": "assistant", "content": text}));
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(streamed(&server, &writing(text)), (text.to_owned(), Vec::new(), json!("stop")));
    }
    // Nor is one where none is wanted, or known.
    let text = "<tool_call>{\"name\": \"moon\"}</tool_call>";
    let mut none = writing(text);
    none["tool_choice"] = "none".into();
    assert_eq!(server.chat("When?", none)["choices"][0]["message"]["content"], text);
    let mut without = writing(text);
    without["tools"] = Value::Null;
    assert_eq!(server.chat("When?", without)["choices"][0]["message"]["content"], text);
    // A call that is broken off.
    let mut short = writing(text);
    short["max_tokens"] = 5.into();
    let choice = server.chat("When?", short)["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "length");
    assert!(text.starts_with(choice["message"]["content"].as_str().unwrap()));
}

#[test]
fn a_call_can_be_demanded() {
    let server = hermes();
    let ask = |mut fields: Value| {
        (fields["tools"], fields["max_tokens"]) = (tools(), 300.into());
        let document = server.chat("When is the tide high?", fields.clone());
        let choice = &document["choices"][0];
        let calls = named(choice["message"]["tool_calls"].as_array().unwrap());
        if choice["finish_reason"] == "tool_calls" {
            assert_eq!(choice["message"]["content"], Value::Null, "{document}");
        }
        assert_eq!(named(&streamed(&server, &fields).1), calls);
        calls
    };
    let is_right = |(name, arguments): &(String, String)| match name.as_str() {
        "tide" => ["{\"port\": \"Brest\"}", "{\"port\": \"Cork\"}"].contains(&arguments.as_str()),
        name => name == "moon" && arguments == "{}",
    };
    // The model may go on with further calls, to the last of its tokens.
    let calls = ask(json!({"tool_choice": "required", "temperature": 1.5, "seed": 3}));
    assert!(!calls.is_empty() && calls.iter().all(is_right), "{calls:?}");
    let fields = json!({"tool_choice": "required", "parallel_tool_calls": false, "temperature": 0});
    let calls = ask(fields);
    assert!(calls.len() == 1 && is_right(&calls[0]), "{calls:?}");
    for name in ["tide", "moon"] {
        let choice = json!({"type": "function", "function": {"name": name}});
        let calls = ask(json!({"tool_choice": choice, "temperature": 1.5, "seed": 5}));
        assert!(calls.len() == 1 && calls[0].0 == name && is_right(&calls[0]), "{calls:?}");
    }
    let fields = json!({"tools": tools(), "tool_choice": "required", "response_format": {"type": "json_object"}});
    let refused = server.post(CHAT, &chat("When?", fields));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("tool_choice")));
    let broken =
        json!([{"type": "function", "function": {"name": "a", "parameters": {"type": "nothing"}}}]);
    let refused =
        server.post(CHAT, &chat("When?", json!({"tools": broken, "tool_choice": "required"})));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("tool_choice")));
}

#[test]
fn messages_about_calls_go_to_the_template() {
    let server = hermes();
    let call = json!([{"id": "a", "type": "function", "function": {"name": "tide", "arguments": "{\"port\": \"Cork\"}"}}]);
    let messages = json!([
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": null, "tool_calls": call},
        {"role": "tool", "tool_call_id": "a", "content": "At six."},
    ]);
    let body = json!({"messages": messages, "tools": tools()});
    let tokens = server.document("/tokenize", &body)["tokens"].clone();
    let text = server.document("/detokenize", &json!({"tokens": tokens}))["prompt"].clone();
    assert_eq!(
        text,
        "<|im_start|>system\ntide moon<|im_end|>\n<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{\"name\": \"tide\", \"arguments\": {\"port\": \"Cork\"}}\n</tool_call><|im_end|>\n<|im_start|>tool\nAt six.<|im_end|>\n<|im_start|>assistant\n"
    );
    let mut none = body.clone();
    none["tool_choice"] = "none".into();
    assert!(
        server.document("/tokenize", &none)["tokens"].as_array().unwrap().len()
            < tokens.as_array().unwrap().len()
    );
    let mut answer = body;
    answer["max_tokens"] = 4.into();
    assert_eq!(
        server.document(CHAT, &answer)["usage"]["prompt_tokens"],
        tokens.as_array().unwrap().len()
    );
}

#[test]
fn marks_that_are_special_tokens_are_seen() {
    let template =
        "[TOOL_CALLS]{# #}{% for message in messages %}{{ message.content }}{% endfor %}";
    let server = start_model(Options::default(), || with_template(template, Some("[TOOL_CALLS]")));
    let grammar = format!("start: \"Now.\" <[{LAST}]> \"[{{\\\"name\\\": \\\"moon\\\"}}]\"");
    let fields = json!({"tools": tools(), "grammar": grammar});
    let choice = server.chat("When?", fields.clone())["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "Now.");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(named(calls), [("moon".to_owned(), "{}".to_owned())]);
    // The ids that Mistral's templates take.
    assert_eq!(calls[0]["id"].as_str().unwrap().len(), 9);
    assert_eq!(streamed(&server, &fields).1.len(), 1);
    let fields = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false});
    let choice = server.chat("When?", fields)["choices"][0].clone();
    assert_eq!(choice["message"]["tool_calls"].as_array().unwrap().len(), 1, "{choice}");
    // Without tools it is left out of the text, as ever.
    let choice = server.chat("When?", json!({"grammar": grammar}))["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "Now.[{\"name\": \"moon\"}]");
}

#[test]
fn thoughts_of_gpt_oss_stand_beside_the_answer() {
    let thought = "<|channel|>analysis<|message|>The sea.<|end|><|start|>assistant";
    let answer = format!("{thought}<|channel|>final<|message|>At noon.");
    let call = format!(
        "{thought}<|channel|>commentary to=functions.moon <|constrain|>json<|message|>{{}}<|call|>"
    );
    for special in [None, Some("<|message|>")] {
        let server = start_model(Options::default(), move || with_template(HARMONY, special));
        let writing = |text: &str, tools: Value| {
            let parts: Vec<String> = match special {
                Some(mark) => text.split(mark).map(|it| Value::from(it).to_string()).collect(),
                None => vec![Value::from(text).to_string()],
            };
            let grammar = format!("start: {}", parts.join(&format!(" <[{LAST}]> ")));
            json!({"grammar": grammar, "max_tokens": 200, "tools": tools})
        };
        for tools in [Value::Null, tools()] {
            let fields = writing(&answer, tools);
            let choice = server.chat("When?", fields.clone())["choices"][0].clone();
            assert_eq!(
                choice["message"],
                json!({"role": "assistant", "content": "At noon.", "reasoning_content": "The sea."})
            );
            assert_eq!(choice["finish_reason"], "stop");
            assert_eq!(streamed(&server, &fields).0, "At noon.");
            let events = server.events(CHAT, &chat("When?", fields));
            let deltas = events[..events.len() - 1].iter().map(|it| {
                serde_json::from_str::<Value>(it).unwrap()["choices"][0]["delta"].clone()
            });
            let thoughts: String = deltas
                .filter_map(|it| it["reasoning_content"].as_str().map(str::to_owned))
                .collect();
            assert_eq!(thoughts, "The sea.");
        }
        let fields = writing(&call, tools());
        let choice = server.chat("When?", fields.clone())["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        assert_eq!(choice["message"]["reasoning_content"], "The sea.");
        let calls = [("moon".to_owned(), "{}".to_owned())];
        assert_eq!(named(choice["message"]["tool_calls"].as_array().unwrap()), calls);
        assert_eq!(named(&streamed(&server, &fields).1), calls);
    }
}

#[test]
fn a_model_without_a_known_form_is_warned_of() {
    let server = start();
    let document = server.chat("When?", json!({"tools": tools(), "max_tokens": 2}));
    assert!(document["warnings"].to_string().contains("`tools`"), "{document}");
    let document = server.chat("When?", json!({"tools": [], "max_tokens": 2}));
    assert_eq!(document.get("warnings"), None);
}
