//! What answers look like, and that they are the library's.

use mlx_genkit::{Message, Request, Seed, generation_config::Kwargs};
use mlxgk_server::Options;
use serde_json::{Value, json};

use crate::client::{CHAT, COMPLETIONS, chat, model, start, start_with};

/// What the library makes of a chat's message and fields in HF's names.
fn generated(text: &str, fields: &Value, seed: u64) -> Vec<(String, Vec<u32>)> {
    let model = model();
    let request = Request::new(vec![Message::new("user", text)])
        .overrides(Kwargs::from_json(fields).unwrap())
        .seed(Seed::Fast(seed))
        .trim_stop(true);
    let sequences = model.generate(request).unwrap().sequences;
    sequences.into_iter().map(|it| (it.text, it.tokens)).collect()
}

#[test]
fn a_chat_is_answered_in_openais_shape() {
    let server = start();
    let answer = server.post(
        CHAT,
        &chat(
            "How is the weather?",
            json!({"temperature": 0, "max_tokens": 12, "model": "bundled", "user": "me"}),
        ),
    );
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let document = answer.json();
    assert!(document["id"].as_str().unwrap().starts_with("chatcmpl-"), "{document}");
    assert_eq!(document["object"], "chat.completion");
    assert_eq!(document["model"], "bundled");
    assert!(document["created"].as_u64().unwrap() > 1_700_000_000);
    let [choice] = &document["choices"].as_array().unwrap()[..] else { panic!("{document}") };
    let expected = generated("How is the weather?", &json!({"max_new_tokens": 12}), 0);
    assert_eq!(choice["message"], json!({"role": "assistant", "content": expected[0].0}));
    assert_eq!((&choice["index"], &choice["logprobs"]), (&json!(0), &Value::Null));
    let is_cut = expected[0].1.len() == 12;
    assert_eq!(choice["finish_reason"], if is_cut { "length" } else { "stop" });
    let usage = &document["usage"];
    assert_eq!(usage["completion_tokens"], expected[0].1.len());
    let [prompt, total] =
        [&usage["prompt_tokens"], &usage["total_tokens"]].map(|it| it.as_u64().unwrap());
    assert_eq!(total, prompt + expected[0].1.len() as u64);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(document.get("seed"), None, "nothing is drawn");
}

#[test]
fn answers_with_a_seed_are_the_librarys() {
    let server = start();
    let fields = json!({"temperature": 0.9, "top_k": 30, "repetition_penalty": 1.1, "seed": 7, "max_tokens": 20, "n": 3, "return_token_ids": true});
    let document = server.chat("Tell me a story.", fields);
    let expected = generated(
        "Tell me a story.",
        &json!({"do_sample": true, "temperature": 0.9, "top_k": 30, "repetition_penalty": 1.1, "max_new_tokens": 20, "num_return_sequences": 3}),
        7,
    );
    let choices = document["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (at, (choice, (text, tokens))) in choices.iter().zip(&expected).enumerate() {
        assert_eq!(choice["index"], at);
        assert_eq!(choice["message"]["content"], *text);
        assert_eq!(choice["token_ids"], json!(tokens));
    }
    assert_eq!(document["seed"], 7);
    assert_ne!(expected[0], expected[1], "rows draw for themselves");
}

#[test]
fn a_seed_that_was_chosen_can_be_given_again() {
    let server = start();
    let fields = |seed: Option<&Value>| match seed {
        None => json!({"temperature": 1.5, "max_tokens": 16}),
        Some(seed) => json!({"temperature": 1.5, "max_tokens": 16, "seed": seed}),
    };
    let first = server.chat("Tell me a story.", fields(None));
    let again = server.chat("Tell me a story.", fields(Some(&first["seed"])));
    assert_eq!(first["choices"], again["choices"]);
    let other = server.chat("Tell me a story.", fields(None));
    assert_ne!(first["seed"], other["seed"]);
}

#[test]
fn completions_take_every_form_of_prompt() {
    let server = start();
    let ids =
        server.document("/tokenize", &json!({"prompt": "Once upon a time"}))["tokens"].clone();
    let fields = |prompt: Value| json!({"prompt": prompt, "temperature": 0, "max_tokens": 8});
    let ask = |prompt: Value| server.document(COMPLETIONS, &fields(prompt));
    let one = ask(json!("Once upon a time"));
    assert_eq!(one["object"], "text_completion");
    assert!(one["id"].as_str().unwrap().starts_with("cmpl-"));
    let text = one["choices"][0]["text"].clone();
    assert!(text.as_str().is_some_and(|it| !it.is_empty()));
    assert_eq!(ask(ids.clone())["choices"], one["choices"]);
    let several = ask(json!(["Once upon a time", ids]));
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    for (at, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["text"]), (&json!(at), &text));
    }
    assert_eq!(several["usage"]["completion_tokens"], 16);
}

#[test]
fn modes_without_a_stream_are_served() {
    let server = start();
    let document =
        server.chat("Hello", json!({"num_beams": 3, "num_return_sequences": 2, "max_tokens": 8}));
    let expected = generated(
        "Hello",
        &json!({"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}),
        0,
    );
    let found: Vec<&Value> = document["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["message"]["content"])
        .collect();
    assert_eq!(found, expected.iter().map(|it| &it.0).collect::<Vec<_>>());
}

#[test]
fn logprobs_spell_the_text() {
    let server = start();
    let fields = json!({"temperature": 0, "max_tokens": 6, "min_new_tokens": 6, "logprobs": true, "top_logprobs": 2});
    let choice = server.chat("What is a lamp?", fields)["choices"][0].clone();
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 6);
    let mut spelled = Vec::new();
    for entry in content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedily chosen, so the likeliest.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        let bytes = entry["bytes"].as_array().unwrap().iter().map(|it| it.as_u64().unwrap() as u8);
        spelled.extend(bytes);
    }
    assert_eq!(String::from_utf8(spelled).unwrap(), choice["message"]["content"].as_str().unwrap());

    let body = json!({"prompt": "The harbour", "temperature": 0, "max_tokens": 5, "min_new_tokens": 5, "logprobs": 3});
    let choice = server.document(COMPLETIONS, &body)["choices"][0].clone();
    let (logprobs, text) = (&choice["logprobs"], choice["text"].as_str().unwrap());
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), text);
    let offsets =
        logprobs["text_offset"].as_array().unwrap().iter().map(|it| it.as_u64().unwrap() as usize);
    for (token, offset) in tokens.iter().zip(offsets) {
        let rest: String = text.chars().skip(offset).collect();
        assert!(rest.starts_with(token), "{token:?} at {offset} of {text:?}");
    }
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), 5);
    assert!(
        logprobs["top_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .all(|it| it.as_object().unwrap().len() == 3)
    );
}

#[test]
fn structure_is_enforced() {
    let server = start();
    let schema = json!({
        "type": "object",
        "properties": {"calm": {"type": "boolean"}, "wind": {"enum": ["north", "south"]}},
        "required": ["calm", "wind"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "sea", "strict": true, "schema": schema}});
    for fields in [json!({"response_format": format}), json!({"json_schema": schema})] {
        for seed in 0..4 {
            let mut fields = fields.clone();
            (fields["temperature"], fields["seed"]) = (1.5.into(), seed.into());
            let document = server.chat("Is the sea calm?", fields);
            let text = document["choices"][0]["message"]["content"].as_str().unwrap();
            let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(value["calm"].is_boolean() && value["wind"].is_string(), "{text}");
        }
    }
    let answer =
        server.chat("When?", json!({"regex": "(Today|Tomorrow) at [0-9]\\.", "temperature": 0}));
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with("To") && text.ends_with('.'), "{text}");
    let any = server
        .chat("A ship.", json!({"response_format": {"type": "json_object"}, "temperature": 0}));
    if any["choices"][0]["finish_reason"] == "stop" {
        let text = any["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(serde_json::from_str::<Value>(text).unwrap().is_object(), "{text}");
    }
    server.chat("Hello", json!({"response_format": {"type": "text"}, "max_tokens": 2}));
}

#[test]
fn stop_strings_are_left_out() {
    let server = start();
    let whole = server.chat("Tell me a story.", json!({"temperature": 0, "max_tokens": 40}));
    let whole = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let middle: String = whole.chars().skip(9).take(5).collect();
    for stop in [json!(middle), json!(["§", middle])] {
        let document = server
            .chat("Tell me a story.", json!({"temperature": 0, "max_tokens": 40, "stop": stop}));
        let choice = &document["choices"][0];
        assert_eq!(choice["message"]["content"], whole.split(&middle).next().unwrap());
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[test]
fn content_may_come_in_parts_and_fields_be_null() {
    let server = start();
    let fields = || json!({"temperature": 0, "max_tokens": 6});
    let mut parts = chat("", fields());
    parts["messages"][0]["content"] = json!([{"type": "text", "text": "How is the weather?"}]);
    for name in [
        "stop",
        "top_p",
        "n",
        "tools",
        "response_format",
        "seed",
        "logit_bias",
        "steering",
        "stream_options",
    ] {
        parts[name] = Value::Null;
    }
    let plain = server.chat("How is the weather?", fields());
    assert_eq!(server.document(CHAT, &parts)["choices"], plain["choices"]);
}

#[test]
fn tokens_and_models_are_told() {
    let server = start();
    let tokens = server.document("/tokenize", &json!({"prompt": "The harbour is quiet."}));
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    assert_eq!(tokens["max_model_len"], 1024);
    let text = server.document("/detokenize", &json!({"tokens": tokens["tokens"]}));
    assert_eq!(text["prompt"], "The harbour is quiet.");
    let chat = server.document("/tokenize", &chat("Hello", json!({})));
    let usage = server.chat("Hello", json!({"max_tokens": 1}))["usage"].clone();
    assert_eq!(chat["count"], usage["prompt_tokens"]);

    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("bundled")));
    assert_eq!(server.get("/v1/models/bundled").json(), models["data"][0]);
    let missing = server.get("/v1/models/other/one");
    assert_eq!(
        (missing.status, &missing.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

#[test]
fn metrics_count() {
    let server = start();
    server.chat("Hello", json!({"max_tokens": 3, "min_new_tokens": 3, "temperature": 0}));
    server.get("/nowhere");
    let text = server.get("/metrics").text();
    for line in [
        "# TYPE mlxgk_requests_total counter",
        "mlxgk_requests_total{code=\"200\"} 1",
        "mlxgk_requests_total{code=\"404\"} 1",
        "mlxgk_requests_running 0",
        "mlxgk_generated_tokens_total 3",
        "mlxgk_engine_failures_total 0",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_length_has_a_default_that_the_context_holds() {
    let server = start_with(Options { max_tokens: 5, ..Options::default() });
    let fields = json!({"min_new_tokens": 5, "temperature": 0});
    assert_eq!(server.chat("Hello", fields)["usage"]["completion_tokens"], 5);
    // A prompt that leaves room for less.
    let body = json!({"prompt": vec![5; 1021], "min_new_tokens": 3, "temperature": 0});
    let document = server.document(COMPLETIONS, &body);
    assert_eq!(document["usage"]["completion_tokens"], 3);
    assert_eq!(document["choices"][0]["finish_reason"], "length");
}

#[test]
fn prefixes_are_shared_where_there_is_room_for_them() {
    let options = Options { prefix_cache_mb: 64, ..Options::default() };
    let (server, without) = (start_with(options), start());
    let prompt: Vec<u32> = (0..300).map(|it| 100 + it % 900).collect();
    let body = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0});
    let first = server.document(COMPLETIONS, &body);
    let second = server.document(COMPLETIONS, &body);
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], 256);
    assert_eq!(first["choices"], second["choices"]);
    assert_eq!(without.document(COMPLETIONS, &body)["choices"], first["choices"]);
}

#[test]
fn warnings_are_told() {
    let server = start();
    let document = server.chat("Hello", json!({"top_p": 0.5, "do_sample": false, "max_tokens": 2}));
    let warnings = document["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|it| it.as_str().unwrap().contains("`top_p`")), "{document}");
}
