//! Answers as they are made: the events, their order, and that nothing is shown that is taken back.

use serde_json::{Value, json};

use crate::client::{CHAT, COMPLETIONS, chat, start};

fn parsed(events: &[String]) -> Vec<Value> {
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    chunks.iter().map(|it| serde_json::from_str(it).unwrap()).collect()
}

/// The text of a choice of a chat's chunks.
fn content(chunks: &[Value], index: usize) -> String {
    let choices =
        chunks.iter().filter_map(|it| it["choices"].get(0)).filter(|it| it["index"] == index);
    choices.filter_map(|it| it["delta"]["content"].as_str()).collect()
}

#[test]
fn a_chat_streams_role_text_and_reason() {
    let server = start();
    let fields = json!({"temperature": 0, "max_tokens": 12});
    let whole = server.chat("How is the weather?", fields.clone());
    let chunks = parsed(&server.events(CHAT, &chat("How is the weather?", fields)));
    let (first, last) = (&chunks[0], chunks.last().unwrap());
    assert_eq!(
        first["choices"],
        json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null}])
    );
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            [&chunk["id"], &chunk["created"], &chunk["model"]],
            [&first["id"], &first["created"], &json!("bundled")]
        );
        assert_eq!(chunk.get("usage"), None);
    }
    for chunk in &chunks[1..] {
        assert_eq!(chunk["choices"][0]["delta"].get("role"), None, "the role is said once");
    }
    for chunk in &chunks[1..chunks.len() - 1] {
        assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null);
        assert_ne!(chunk["choices"][0]["delta"]["content"], "");
    }
    assert_eq!(content(&chunks, 0), whole["choices"][0]["message"]["content"]);
}

#[test]
fn several_choices_stream_side_by_side() {
    let server = start();
    let fields = json!({"temperature": 1.1, "seed": 3, "n": 3, "max_tokens": 15});
    let whole = server.chat("Tell me a story.", fields.clone());
    let chunks = parsed(&server.events(CHAT, &chat("Tell me a story.", fields)));
    for index in 0..3 {
        assert_eq!(content(&chunks, index), whole["choices"][index]["message"]["content"]);
        let of = chunks.iter().map(|it| &it["choices"][0]).filter(|it| it["index"] == index);
        let of: Vec<&Value> = of.collect();
        assert_eq!(of.iter().filter(|it| it["delta"].get("role").is_some()).count(), 1);
        assert_eq!(of.last().unwrap()["finish_reason"], whole["choices"][index]["finish_reason"]);
    }
    assert_eq!((&chunks[0]["seed"], chunks[1].get("seed")), (&json!(3), None));
}

/// Token by token what the whole answer says at its end.
#[test]
fn logprobs_stream_with_their_tokens() {
    let server = start();
    let fields = json!({"temperature": 1.0, "seed": 5, "n": 2, "max_tokens": 12, "logprobs": true, "top_logprobs": 2});
    // A text that ends before a stop string, and characters of several tokens.
    for more in [json!({"stop": ["e"]}), json!({"regex": "[é€😀ß漢]{4}"})] {
        let mut fields = fields.clone();
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = server.chat("How is the weather?", fields.clone());
        let chunks = parsed(&server.events(CHAT, &chat("How is the weather?", fields)));
        for index in 0..2 {
            let of = chunks.iter().map(|it| &it["choices"][0]).filter(|it| it["index"] == index);
            let told = of.filter_map(|it| it["logprobs"]["content"].as_array());
            let told: Vec<&Value> = told.flatten().collect();
            assert!(!told.is_empty());
            assert_eq!(json!(told), whole["choices"][index]["logprobs"]["content"]);
            assert_eq!(content(&chunks, index), whole["choices"][index]["message"]["content"]);
        }
    }

    let body = json!({"prompt": ["Once upon a time", "The harbour"], "temperature": 0, "max_tokens": 9, "logprobs": 2, "return_token_ids": true});
    let whole = server.document(COMPLETIONS, &body);
    let chunks = parsed(&server.events(COMPLETIONS, &body));
    for index in 0..2 {
        let of = chunks.iter().map(|it| &it["choices"][0]).filter(|it| it["index"] == index);
        let told: Vec<&Value> = of.map(|it| &it["logprobs"]).filter(|it| it.is_object()).collect();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let all = told.iter().flat_map(|it| it[name].as_array().unwrap());
            assert_eq!(json!(all.collect::<Vec<_>>()), whole["choices"][index]["logprobs"][name]);
        }
    }
}

#[test]
fn usage_comes_last_where_it_is_asked_for() {
    let server = start();
    let fields = json!({"temperature": 0, "max_tokens": 4, "min_new_tokens": 4, "stream_options": {"include_usage": true}});
    let chunks = parsed(&server.events(CHAT, &chat("Hello", fields)));
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 4);
    assert!(before.iter().all(|it| it["usage"].is_null() && it.get("usage").is_some()));
}

#[test]
fn completions_stream_text() {
    let server = start();
    let body = json!({"prompt": ["Once upon a time", "The harbour"], "temperature": 0, "max_tokens": 9, "return_token_ids": true});
    let whole = server.document(COMPLETIONS, &body);
    let chunks = parsed(&server.events(COMPLETIONS, &body));
    for index in 0..2 {
        let of = || chunks.iter().map(|it| &it["choices"][0]).filter(|it| it["index"] == index);
        let text: String = of().filter_map(|it| it["text"].as_str()).collect();
        assert_eq!(text, whole["choices"][index]["text"]);
        let ids: Vec<&Value> = of().filter_map(|it| it["token_ids"].get(0)).collect();
        assert_eq!(json!(ids), whole["choices"][index]["token_ids"]);
        assert!(chunks.iter().all(|it| it["object"] == "text_completion"));
    }
}

/// Every part of a text as a stop string, and strings that begin like it: what is shown never holds a
/// part of what the text ends before.
#[test]
fn stop_strings_never_show_half() {
    let server = start();
    let fields = json!({"temperature": 0, "max_tokens": 40});
    let whole = server.chat("Tell me a story.", fields.clone());
    let whole = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let letters: Vec<char> = whole.chars().collect();
    for begin in (1..letters.len().saturating_sub(12)).step_by(7) {
        let stop: String = letters[begin..begin + 10].iter().collect();
        let mut fields = fields.clone();
        // The second begins like the first, and never comes.
        fields["stop"] =
            json!([stop, format!("{}§", letters[begin - 1..begin + 3].iter().collect::<String>())]);
        let chunks = parsed(&server.events(CHAT, &chat("Tell me a story.", fields)));
        assert_eq!(content(&chunks, 0), whole.split(&stop).next().unwrap(), "{stop:?}");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn characters_are_whole() {
    let server = start();
    for seed in 0..4 {
        let fields = json!({"regex": "[é€😀ß漢]{6}", "temperature": 1.5, "seed": seed});
        let chunks = parsed(&server.events(CHAT, &chat("Hello", fields)));
        let text = content(&chunks, 0);
        assert_eq!(text.chars().count(), 6, "{text}");
        assert!(text.chars().all(|it| "é€😀ß漢".contains(it)), "{text}");
    }
}

#[test]
fn an_error_after_the_first_byte_is_an_event() {
    let server = start();
    // After the `x` nothing is allowed: all that begins with a `q` is banned.
    let banned: Vec<u32> = (0..2560)
        .filter(|id| {
            let body = json!({"tokens": [id]});
            let text = server.document("/detokenize", &body)["prompt"].as_str().unwrap().to_owned();
            text.contains('q')
        })
        .collect();
    let fields = json!({"regex": "[x]{3}q", "suppress_tokens": banned, "temperature": 0});
    let events = server.events(CHAT, &chat("Hello", fields.clone()));
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert!(
        last["error"]["message"].as_str().unwrap().contains("no token can be chosen"),
        "{last}"
    );
    assert_eq!(last["error"]["type"], "invalid_request_error");
    assert!(events.len() > 2 && events.iter().all(|it| it != "[DONE]"), "{events:?}");
    assert_eq!(server.post(CHAT, &chat("Hello", fields)).status, 400);
    server.assert_alive();
}
