//! The end of a server: what runs is answered, what waits is told, nothing new is taken.

use std::{io::BufReader, net::TcpStream, thread, time::Duration};

use mlxgk_server::Options;
use serde_json::json;

use crate::client::{CHAT, chat, exactly, post, read, read_chunk, read_head, start, start_with};

#[test]
fn what_runs_is_answered_and_what_waits_is_told() {
    // Far longer than a busy machine takes.
    let drain = Duration::from_secs(600);
    let server = start_with(Options { max_rows: 1, drain, ..Options::default() });
    let head = post(CHAT);
    let body = chat("Hello", exactly(600)).to_string();
    let running = server.send(&head, body.as_bytes());
    server.wait_for("running", 1);
    let waiting = server.send(&head, body.as_bytes());
    server.wait_for("waiting", 1);
    server.stop();
    let told = read(waiting);
    assert_eq!((told.status, told.header("retry-after")), (503, Some("5")));
    assert_eq!(told.json()["error"]["code"], "stopping");
    let answer = read(running);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 600);
    let address = server.address;
    server.join();
    assert!(TcpStream::connect(address).is_err(), "nobody listens any longer");
}

#[test]
fn a_stream_is_ended_at_once_where_that_is_asked_for() {
    let server = start();
    let mut body = chat("Hello", exactly(1000));
    body["stream"] = true.into();
    let stream = server.send(&post(CHAT), body.to_string().as_bytes());
    let mut reader = BufReader::new(stream);
    assert_eq!(read_head(&mut reader).status, 200);
    read_chunk(&mut reader).unwrap();
    let said = thread::spawn(move || {
        let chunks: Vec<u8> = std::iter::from_fn(|| read_chunk(&mut reader)).flatten().collect();
        String::from_utf8(chunks).unwrap()
    });
    // Ends the server at once.
    drop(server);
    let said = said.join().unwrap();
    assert!(said.ends_with("\n\n") && !said.contains("[DONE]"), "{said}");
    assert!(said.contains("\"code\":\"stopping\""), "{said}");
}

#[test]
fn idle_connections_do_not_keep_a_server() {
    let server = start();
    let idle = server.connect();
    thread::sleep(Duration::from_millis(50));
    server.chat("Hello", json!({"max_tokens": 1}));
    server.stop();
    server.join();
    drop(idle);
}
