//! What is refused, and how: a status, OpenAI's error object, the field by name.

use std::thread;

use mlxgk_server::Options;
use serde_json::{Value, json};

use crate::client::{Answer, CHAT, COMPLETIONS, chat, exactly, post, read, start, start_with};

/// The error object of an answer, whose shape is checked.
#[track_caller]
fn error(answer: &Answer) -> Value {
    let document = answer.json();
    let error = &document["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{document}");
    assert!(error.get("param").is_some() && error.get("code").is_some(), "{document}");
    assert!(answer.header("x-request-id").is_some());
    error.clone()
}

#[test]
fn fields_are_refused_by_name() {
    let server = start();
    let mut faults = Vec::new();
    for (fields, param, words) in [
        (json!({"frobnicate": 1}), "frobnicate", "unknown field `frobnicate`"),
        (json!({"stop": [1]}), "stop", "`stop"),
        (json!({"stop": ""}), "stop", "stop"),
        (json!({"temperature": -1}), "temperature", "0 or more"),
        (json!({"temperature": "hot"}), "temperature", "must be a number"),
        (json!({"top_p": 1.5, "temperature": 1}), "top_p", "`top_p`"),
        (json!({"top_k": -1}), "top_k", "`top_k`"),
        (json!({"max_tokens": 0}), "max_tokens", "`max_tokens`"),
        (json!({"max_tokens": 1e300}), "max_tokens", "`max_tokens`"),
        (json!({"max_tokens": 5, "max_new_tokens": 5}), "max_tokens", "one field"),
        (
            json!({"max_tokens": 5, "max_completion_tokens": 5}),
            "max_completion_tokens",
            "one field",
        ),
        (json!({"n": 33, "temperature": 1}), "n", "33 sequences"),
        (json!({"penalty_alpha": 0.6, "top_k": 40}), "n", "40 sequences"),
        (json!({"n": 2}), "n", "`n`"),
        (json!({"seed": -1}), "seed", "whole number"),
        (json!({"seed": 1.5}), "seed", "whole number"),
        (json!({"stream": "yes"}), "stream", "true or false"),
        (json!({"stream": true, "num_beams": 2}), "stream", "beam"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options", "needs `stream`"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "x", "unknown field"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "at most 20"),
        (json!({"top_logprobs": 2}), "top_logprobs", "needs `logprobs`"),
        (json!({"response_format": {"type": "xml"}}), "response_format", "json_schema"),
        (
            json!({"response_format": {"type": "json_object", "schema": {}}}),
            "response_format",
            "unknown field `response_format.schema`",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format",
            "must be a JSON schema",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "regex": "a"}),
            "response_format",
            "together",
        ),
        (
            json!({"json_schema": {"type": "nothing"}}),
            "json_schema",
            "the JSON schema cannot be used",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}),
            "response_format",
            "the JSON schema cannot be used",
        ),
        (json!({"regex": "("}), "regex", "the regular expression cannot be used"),
        (json!({"grammar": "start: ("}), "grammar", "grammar"),
        (json!({"tools": [1]}), "tools", "list of objects"),
        (json!({"tools": [{}]}), "tools", "`tools[0]` has no `function` with a `name`"),
        (
            json!({"tools": [{"type": "custom", "function": {"name": "a"}}]}),
            "tools",
            "another `type`",
        ),
        (json!({"tools": [{"function": {"name": "a", "parameters": 1}}]}), "tools", "`parameters`"),
        (json!({"tool_choice": "required"}), "tool_choice", "needs `tools`"),
        (json!({"tool_choice": "always"}), "tool_choice", "required"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice", "name of a function"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "a"}}}),
            "tool_choice",
            "which no tool is called",
        ),
        (
            json!({"tools": [{"function": {"name": "a"}}], "tool_choice": "required"}),
            "tool_choice",
            "is not known",
        ),
        (json!({"parallel_tool_calls": 1}), "parallel_tool_calls", "true or false"),
        (json!({"store": true}), "store", "not supported"),
        (json!({"output_scores": true}), "output_scores", "no room"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias", "`logit_bias"),
        (json!({"logit_bias": {"99999": 1}}), "logit_bias", "99999"),
        (json!({"constraints": [1]}), "constraints", "not implemented"),
        (json!({"chat_template_kwargs": 1}), "chat_template_kwargs", "an object"),
        (json!({"messages_": []}), "messages_", "unknown field"),
        (json!({"model": 5}), "model", "a text"),
        (json!({"do_sample": false, "temperature": 1}), "do_sample", "`do_sample`"),
        (json!({"min_new_tokens": "a"}), "min_new_tokens", "`min_new_tokens`"),
        (json!({"prefill_chunk_size": 0}), "prefill_chunk_size", "`prefill_chunk_size`"),
    ] {
        let answer = server.post(CHAT, &chat("Hello", fields.clone()));
        if answer.status != 400 {
            faults.push(format!("{fields}: status {}: {}", answer.status, answer.text()));
            continue;
        }
        let error = error(&answer);
        let message = error["message"].as_str().unwrap();
        let is_right = error["type"] == "invalid_request_error"
            && error["param"].as_str().unwrap_or_default() == param
            && message.contains(words)
            && answer.header("x-should-retry") == Some("false");
        if !is_right {
            faults.push(format!("{fields}: {error}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    server.assert_alive();
}

#[test]
fn messages_and_prompts_are_refused() {
    let server = start();
    for (messages, words) in [
        (json!([]), "at least one"),
        (json!("x"), "a list of messages"),
        (json!([{}]), "`messages[0]` has no `role`"),
        (json!([1]), "must be an object"),
        (json!([{"role": "user"}]), "has no `content`"),
        (json!([{"role": "user", "content": 5}]), "neither a text nor a list"),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "only text is supported",
        ),
        (
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": 1}]),
            "`messages[1]` has `tool_calls`",
        ),
        (Value::Null, "are missing"),
    ] {
        let answer = server.post(CHAT, &json!({"messages": messages}));
        let error = error(&answer);
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &json!("messages")),
            "{messages}: {error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{messages}: {message}");
    }
    for (prompt, words) in [
        (json!(""), "the prompt is empty"),
        (json!([]), "the prompt is empty"),
        (json!([[]]), "the prompt is empty"),
        (json!(["a", ""]), "the prompt is empty"),
        (json!(5), "a text, token ids"),
        (json!([5, -1]), "a text, token ids"),
        (json!([1.5]), "a text, token ids"),
        (json!([4_294_967_296_u64]), "a text, token ids"),
        (json!([2560]), "outside the vocabulary of 2560"),
        (json!({"a": 1}), "a text, token ids"),
        (json!([["a"]]), "a text, token ids"),
        (json!(vec!["a"; 33]), "33 prompts"),
        (Value::Null, "is missing"),
    ] {
        let answer = server.post(COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 2}));
        let message = error(&answer)["message"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, 400, "{prompt}: {message}");
        assert!(message.contains(words), "{prompt}: {message}");
    }
    for (name, body) in [("echo", json!(true)), ("best_of", json!(2)), ("suffix", json!("x"))] {
        let answer = server.post(COMPLETIONS, &json!({"prompt": "a", name: body}));
        assert_eq!((answer.status, &error(&answer)["param"]), (400, &json!(name)));
    }
    server.assert_alive();
}

#[test]
fn the_context_is_a_limit() {
    let server = start();
    let ask = |tokens: usize, fields: Value| {
        let mut body = fields;
        body["prompt"] = vec![5; tokens].into();
        server.post(COMPLETIONS, &body)
    };
    for (answer, prompt) in [
        (ask(1024, json!({})), 1024),
        (ask(3000, json!({"max_tokens": 1})), 3000),
        (ask(1000, json!({"max_tokens": 25})), 1000),
        (ask(1000, json!({"max_length": 1025})), 1000),
    ] {
        let error = error(&answer);
        assert_eq!(
            (answer.status, &error["code"]),
            (400, &json!("context_length_exceeded")),
            "{error}"
        );
        assert_eq!((&error["n_prompt_tokens"], &error["n_ctx"]), (&json!(prompt), &json!(1024)));
    }
    assert_eq!(ask(1000, json!({"max_tokens": 24})).status, 200);
}

#[test]
fn routes_methods_and_models_are_refused() {
    let server = start();
    for (head, status, code) in [
        ("GET /v1/nothing HTTP/1.1", 404, Value::Null),
        ("GET /v1/chat/completions HTTP/1.1", 405, Value::Null),
        ("DELETE /health HTTP/1.1", 405, Value::Null),
        ("GET /v1/vectors/none HTTP/1.1", 404, Value::Null),
    ] {
        let answer = server.ask(head, b"");
        assert_eq!((answer.status, &error(&answer)["code"]), (status, &code), "{head}");
    }
    let answer = server.post(CHAT, &chat("Hello", json!({"model": "gpt-5"})));
    let error = error(&answer);
    assert_eq!((answer.status, &error["code"]), (404, &json!("model_not_found")));
    assert!(error["message"].as_str().unwrap().contains("\"bundled\""), "{error}");
}

#[test]
fn a_full_queue_is_told_and_empties() {
    let server = start_with(Options { max_rows: 1, queue: 1, ..Options::default() });
    let long = chat("Hello", exactly(900)).to_string();
    let head = format!("{}\r\nconnection: close", post(CHAT));
    let running = server.send(&head, long.as_bytes());
    server.wait_for("running", 1);
    let waiting = server.send(&head, long.as_bytes());
    server.wait_for("waiting", 1);
    let refused = server.post(CHAT, &chat("Hello", json!({"max_tokens": 1})));
    assert_eq!((refused.status, &error(&refused)["code"]), (429, &json!("queue_full")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("x-should-retry"), None);
    // A client that leaves the queue makes room.
    drop(waiting);
    server.wait_for("waiting", 0);
    let next = thread::scope(|scope| {
        let next = scope.spawn(|| server.post(CHAT, &chat("Hello", json!({"max_tokens": 1}))));
        assert_eq!(read(running).status, 200);
        next.join().unwrap()
    });
    assert_eq!(next.status, 200);
}
