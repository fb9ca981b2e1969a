//! Who may ask: keys, origins, and the ids of requests.

use std::io::Write;

use mlxgk_server::{ErrorKind, Options, Server};

use crate::client::{read, start, start_with};

#[test]
fn a_key_is_needed_where_there_is_one() {
    let server = start_with(Options { api_key: Some("secret".to_owned()), ..Options::default() });
    for (line, status) in [
        ("x-nothing: 1", 401),
        ("authorization: Bearer wrong", 401),
        ("authorization: Basic secret", 401),
        ("authorization: secret", 401),
        ("authorization: Bearer secret", 200),
        ("authorization: bearer secret", 200),
    ] {
        let answer = server.ask(&format!("GET /v1/models HTTP/1.1\r\n{line}"), b"");
        assert_eq!(answer.status, status, "{line}");
        if status == 401 {
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/metrics").status, 401);
}

#[test]
fn pages_of_other_origins_need_leave() {
    let ask = "OPTIONS /v1/models HTTP/1.1\r\norigin: https://example.org\r\naccess-control-request-method: POST";
    let closed = start();
    let answer = closed.ask(ask, b"");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (405, None));
    let options =
        Options { cors_origin: Some("https://example.org".to_owned()), ..Options::default() };
    let open = start_with(options);
    let answer = open.ask(ask, b"");
    assert_eq!(answer.status, 204);
    for answer in [answer, open.get("/health"), open.get("/nowhere")] {
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://example.org"));
    }
}

#[test]
fn a_server_for_this_machine_is_asked_under_its_names() {
    let server = start();
    let ask = |server: &crate::client::TestServer, host: &str| {
        let mut stream = server.connect();
        let head = format!(
            "GET /v1/models HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer k\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        read(stream).status
    };
    for (host, status) in [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("example.org", 403),
        ("127.0.0.1.example.org:8080", 403),
        ("localhost.example.org", 403),
        ("", 403),
    ] {
        assert_eq!(ask(&server, host), status, "{host}");
    }
    let with_key = start_with(Options { api_key: Some("k".to_owned()), ..Options::default() });
    assert_eq!(ask(&with_key, "example.org"), 200);
}

#[test]
fn requests_keep_their_ids() {
    let server = start();
    let ask = |line: &str| {
        let answer = server.ask(&format!("GET /health HTTP/1.1\r\n{line}"), b"");
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(ask("x-request-id: mine-1"), "mine-1");
    let [first, second] = [ask("x-nothing: 1"), ask("x-nothing: 1")];
    assert!(first.starts_with("req_") && first != second);
    assert!(ask(&format!("x-request-id: {}", "a".repeat(200))).starts_with("req_"));
}

#[test]
fn options_are_checked() {
    let own = Options { port: 0, ..Options::default() };
    for options in [
        Options { max_rows: 0, ..own.clone() },
        Options { queue: 0, ..own.clone() },
        Options { max_tokens: 0, ..own.clone() },
        Options { api_key: Some(String::new()), ..own.clone() },
        Options { api_key: Some("a\nb".to_owned()), ..own.clone() },
        Options { cors_origin: Some("a b".to_owned()), ..own.clone() },
    ] {
        assert_eq!(Server::bind(options).unwrap_err().kind(), ErrorKind::Options);
    }
    let server = Server::bind(own.clone()).unwrap();
    let taken = Server::bind(Options { port: server.address().port(), ..own.clone() }).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Address);
    assert!(taken.to_string().contains("is taken by another program"), "{taken}");
    let nowhere = Server::bind(Options { host: "203.0.113.7".to_owned(), ..own }).unwrap_err();
    assert!(nowhere.to_string().contains("cannot listen on 203.0.113.7"), "{nowhere}");
}
