//! Bodies, clients and numbers that are meant to do harm: each is answered or dropped, and the server
//! serves the next.

use std::{
    io::{BufReader, ErrorKind, Read, Write},
    thread,
    time::Duration,
};

use mlxgk_server::Options;
use serde_json::json;

use crate::client::{
    CHAT, COMPLETIONS, chat, exactly, post, read, read_chunk, read_head, start, start_with,
};

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let server = start();
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(100_000), close.repeat(100_000));
        format!("{{\"messages\": {open}1{close}}}").into_bytes()
    };
    let nested = format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}], \"json_schema\": {}true{}}}",
        "{\"not\": ".repeat(120),
        "}".repeat(120)
    );
    for (name, body, status) in [
        ("no bytes", Vec::new(), 400),
        ("no JSON", b"hello".to_vec(), 400),
        ("half of it", b"{\"messages\": [".to_vec(), 400),
        ("a list", b"[]".to_vec(), 400),
        ("null", b"null".to_vec(), 400),
        ("bad UTF-8", b"{\"prompt\": \"\xff\xfe\"}".to_vec(), 400),
        ("half a surrogate", b"{\"prompt\": \"\\ud800\"}".to_vec(), 400),
        ("deep lists", deep("[", "]"), 400),
        ("deep objects", deep("{\"a\":", "}"), 400),
        ("a deep schema", nested.into_bytes(), 400),
        ("a huge number", b"{\"prompt\": \"a\", \"seed\": 1e999}".to_vec(), 400),
        (
            "a long number",
            format!("{{\"prompt\": \"a\", \"max_tokens\": {}}}", "9".repeat(5000)).into_bytes(),
            400,
        ),
        ("20 MB", vec![b' '; 20 << 20], 413),
    ] {
        for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize"] {
            let answer = server.ask(&post(path), &body);
            assert_eq!(answer.status, status, "{name} to {path}: {}", answer.text());
            assert!(answer.json()["error"]["message"].is_string());
        }
    }
    server.assert_alive();
}

#[test]
fn other_kinds_of_content_are_refused() {
    let server = start();
    for line in [
        "content-type: text/plain",
        "content-type: application/x-www-form-urlencoded",
        "x-nothing: 1",
    ] {
        let answer = server.ask(&format!("POST {CHAT} HTTP/1.1\r\n{line}"), b"{}");
        assert_eq!(answer.status, 415, "{line}");
    }
    let head =
        format!("POST {COMPLETIONS} HTTP/1.1\r\ncontent-type: application/json; charset=utf-8");
    assert_eq!(server.ask(&head, b"{\"prompt\": \"a\", \"max_tokens\": 1}").status, 200);
}

#[test]
fn settings_that_ask_for_too_much_are_refused_or_served() {
    let server = start();
    for fields in [
        json!({"num_beams": 1_000_000_000}),
        json!({"num_return_sequences": u64::MAX, "do_sample": true}),
        json!({"num_beams": 32, "num_return_sequences": 33}),
        json!({"top_k": u64::MAX, "do_sample": true}),
        json!({"min_new_tokens": 1_000_000_000_000_u64}),
        json!({"no_repeat_ngram_size": 1_000_000_000_000_u64}),
        json!({"penalty_alpha": 0.5, "top_k": 2560}),
        json!({"prompt_lookup_num_tokens": 1_000_000_000}),
        json!({"max_kv_size": 1}),
        json!({"kv_bits": 4, "kv_group_size": 128}),
        json!({"guidance_scale": 1e300}),
        json!({"temperature": 1e-300}),
        json!({"temperature": 1e300}),
        json!({"repetition_penalty": 1e-300}),
        json!({"sequence_bias": [[[5], 1e300]]}),
        json!({"max_time": 1e300}),
        json!({"max_time": 0}),
        json!({"eos_token_id": 4_294_967_295_u64}),
        json!({"bad_words_ids": [[]]}),
        json!({"force_words_ids": [[5]], "num_beams": 2}),
        json!({"dola_layers": [99]}),
        json!({"assistant_early_exit": 1}),
        json!({"use_mtp": true}),
        json!({"regex": "(a{1000}){1000}"}),
        json!({"regex": "(a|aa)*b(a|aa)*c"}),
        json!({"stop": vec!["x".repeat(5000); 50]}),
        json!({"watermarking_config": {"greenlist_ratio": 0.5}}),
        json!({"token_healing": true}),
        json!({"forced_eos_token_id": 5, "suppress_tokens": [5]}),
        json!({"suppress_tokens": (0..2560).collect::<Vec<u32>>()}),
    ] {
        let mut body = chat("Hello", fields.clone());
        if fields.get("max_tokens").is_none() {
            body["max_tokens"] = 4.into();
        }
        let answer = server.post(CHAT, &body);
        assert!(
            [200, 400].contains(&answer.status),
            "{fields}: {} {}",
            answer.status,
            answer.text()
        );
    }
    assert_eq!(server.metric("mlxgk_engine_failures_total"), 0);
    server.assert_alive();
}

#[test]
fn heads_that_are_no_http_are_dropped() {
    let server = start();
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello over TLS".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; 1 << 20]].concat(),
        (0..2000).fold(b"GET / HTTP/1.1\r\n".to_vec(), |it, n| [it, format!("x{n}: 1\r\n").into_bytes()].concat()),
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: -5\r\n\r\n".to_vec(),
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
    ] {
        let mut stream = server.connect();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        if let Err(e) = stream.read_to_end(&mut answer) {
            // A connection that is reset is closed, too.
            assert!(!matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{e}");
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    server.assert_alive();
}

#[test]
fn slow_clients_keep_nobody_waiting() {
    let server = start();
    let slow: Vec<_> = (0..20)
        .map(|at| {
            let mut stream = server.connect();
            // Half a head, or half a body.
            let bytes: &[u8] = match at % 2 {
                0 => b"POST /v1/chat/completions HTTP/1.1\r\ncontent-",
                _ => b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{",
            };
            stream.write_all(bytes).unwrap();
            stream
        })
        .collect();
    server.assert_alive();
    drop(slow);
    server.assert_alive();
}

#[test]
fn a_client_that_hangs_up_takes_its_request_with_it() {
    let server = start();
    let mut streamed = chat("Hello", exactly(1000));
    streamed["stream"] = true.into();
    let stream = server.send(&post(CHAT), streamed.to_string().as_bytes());
    let mut reader = BufReader::new(stream);
    assert_eq!(read_head(&mut reader).status, 200);
    for _ in 0..3 {
        read_chunk(&mut reader).unwrap();
    }
    drop(reader);
    server.wait_for("running", 0);
    // One that waits for the whole answer.
    let stream = server.send(&post(CHAT), chat("Hello", exactly(1000)).to_string().as_bytes());
    server.wait_for("running", 1);
    drop(stream);
    server.wait_for("running", 0);
    assert_eq!(server.metric("mlxgk_requests_cancelled_total"), 2);
    assert!(server.metric("mlxgk_generated_tokens_total") < 1900, "both have run to their end");
    server.assert_alive();
}

#[test]
fn a_client_that_does_not_read_keeps_nobody_waiting() {
    let server = start();
    let mut streamed = chat("Hello", exactly(600));
    streamed["stream"] = true.into();
    let unread: Vec<_> =
        (0..3).map(|_| server.send(&post(CHAT), streamed.to_string().as_bytes())).collect();
    server.assert_alive();
    server.wait_for("running", 0);
    // What was said is still there.
    for stream in unread {
        let mut reader = BufReader::new(stream);
        assert_eq!(read_head(&mut reader).status, 200);
        let said: Vec<u8> = std::iter::from_fn(|| read_chunk(&mut reader)).flatten().collect();
        assert!(said.ends_with(b"data: [DONE]\n\n"));
    }
}

/// What a client does not read fills the system's buffers; then its request ends, and another one has its place.
#[test]
fn a_client_that_never_reads_loses_its_place() {
    let server = start_with(Options {
        // Every chunk has it, so that few fill the buffers.
        model: "m".repeat(50_000),
        write_timeout: Duration::from_millis(200),
        ..Options::default()
    });
    let mut streamed = chat("Hello", exactly(1000));
    streamed["stream"] = true.into();
    let unread = server.send(&post(CHAT), streamed.to_string().as_bytes());
    server.wait_for("running", 1);
    server.wait_for("running", 0);
    assert_eq!(server.metric("mlxgk_requests_cancelled_total"), 1);
    server.assert_alive();
    drop(unread);
}

/// Requests of all kinds, of which many are broken off, from several clients at once.
#[test]
fn a_crowd_is_served() {
    let server = start();
    thread::scope(|scope| {
        for client in 0..6_u64 {
            let server = &server;
            scope.spawn(move || {
                for round in 0..12_u64 {
                    let salt = client * 31 + round * 7;
                    let mut fields =
                        json!({"temperature": 1, "seed": salt, "max_tokens": 1 + salt % 40});
                    match salt % 5 {
                        0 => fields["stop"] = json!([1]),
                        1 => fields["stream"] = true.into(),
                        2 => fields["n"] = 2.into(),
                        3 => fields["num_beams"] = 2.into(),
                        _ => fields["regex"] = "[a-z]{3,9}".into(),
                    }
                    let body = chat("Hello", fields).to_string();
                    let stream = server
                        .send(&format!("{}\r\nconnection: close", post(CHAT)), body.as_bytes());
                    if salt % 3 == 0 {
                        thread::sleep(Duration::from_millis(salt % 20));
                        drop(stream);
                    } else {
                        let expected = if salt % 5 == 0 { 400 } else { 200 };
                        assert_eq!(read(stream).status, expected, "{body}");
                    }
                }
            });
        }
    });
    server.wait_for("running", 0);
    assert_eq!(server.metric("mlxgk_engine_failures_total"), 0);
    server.assert_alive();
}
