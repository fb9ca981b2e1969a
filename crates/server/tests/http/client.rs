//! A server to ask, and a client that speaks HTTP by hand, so that tests see what is on the wire.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mlx_genkit::{ComputeDtype, Model};
use mlxgk_server::{Options, Server, Stop};
use serde_json::{Value, json};

/// A server on a thread of its own, which ends with the test.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

/// What a server has answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// A server with the defaults.
pub(crate) fn start() -> TestServer {
    start_with(Options::default())
}

pub(crate) fn start_with(options: Options) -> TestServer {
    start_model(options, model)
}

/// A server with another model.
pub(crate) fn start_model(
    options: Options,
    load: impl FnOnce() -> Model + Send + 'static,
) -> TestServer {
    let server = Server::bind(Options { port: 0, ..options }).unwrap();
    let (address, stop) = (server.address(), server.stop());
    let thread = thread::spawn(move || server.run(&load()).unwrap());
    TestServer { address, stop, thread: Some(thread) }
}

/// The model that a server here has, unless it is given another.
pub(crate) fn model() -> Model {
    Model::bundled(ComputeDtype::Float32).unwrap()
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.stop_now();
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        assert!(ended.is_ok() || thread::panicking(), "the server has panicked");
    }
}

impl TestServer {
    pub(crate) fn stop(&self) {
        self.stop.stop();
    }

    /// Waits for the server's end.
    pub(crate) fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(600))).unwrap();
        stream
    }

    /// Sends a request, and does not wait.
    pub(crate) fn send(&self, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let head = format!("{head}\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses early may close before it has read all.
        let _ = stream.write_all(body);
        stream
    }

    /// Sends a request whose head may have further lines, and reads the answer.
    pub(crate) fn ask(&self, head: &str, body: &[u8]) -> Answer {
        let head = format!("{head}\r\nconnection: close");
        read(self.send(&head, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1"), b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(&post(path), body.to_string().as_bytes())
    }

    /// The document that a request is answered with.
    #[track_caller]
    pub(crate) fn document(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        answer.json()
    }

    /// A chat's document for a user's message and further fields.
    #[track_caller]
    pub(crate) fn chat(&self, text: &str, fields: Value) -> Value {
        self.document(CHAT, &chat(text, fields))
    }

    /// A streamed chat or completion: its events, each without `data: `.
    #[track_caller]
    pub(crate) fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let answer = self.post(path, &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        answer.events()
    }

    /// Whether the server still serves: its health, and a request that runs.
    #[track_caller]
    pub(crate) fn assert_alive(&self) {
        assert_eq!(self.get("/health").status, 200);
        let answer = self.chat("Hello", json!({"max_tokens": 2, "temperature": 0}));
        assert_eq!(answer["usage"]["completion_tokens"], 2);
    }

    /// Waits until a field of `/health` has a value.
    #[track_caller]
    pub(crate) fn wait_for(&self, field: &str, value: u64) {
        let begun = Instant::now();
        while self.get("/health").json()[field] != value {
            assert!(begun.elapsed() < Duration::from_secs(120), "{field} never was {value}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|it| it.strip_prefix(&format!("{name} ")));
        line.unwrap().parse().unwrap()
    }
}

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";

pub(crate) fn post(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\ncontent-type: application/json")
}

/// A chat of one message.
pub(crate) fn chat(text: &str, mut fields: Value) -> Value {
    fields["messages"] = json!([{"role": "user", "content": text}]);
    fields
}

/// Fields that let a text run for so many tokens, whatever it says.
pub(crate) fn exactly(tokens: usize) -> Value {
    json!({"max_tokens": tokens, "min_new_tokens": tokens, "temperature": 0})
}

/// Reads an answer to its end.
pub(crate) fn read(stream: TcpStream) -> Answer {
    let mut reader = BufReader::new(stream);
    let mut answer = read_head(&mut reader);
    if answer.header("transfer-encoding") == Some("chunked") {
        while let Some(chunk) = read_chunk(&mut reader) {
            answer.body.extend(chunk);
        }
    } else {
        let length = answer.header("content-length").map_or(0, |it| it.parse().unwrap());
        answer.body.resize(length, 0);
        reader.read_exact(&mut answer.body).unwrap();
    }
    answer
}

/// Reads status and headers.
pub(crate) fn read_head(reader: &mut impl BufRead) -> Answer {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let status = line();
    let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("{status:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let line = line();
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    Answer { status, headers, body: Vec::new() }
}

/// Reads a chunk of a chunked body; `None` after the last, and where the body breaks off.
pub(crate) fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut size = String::new();
    reader.read_line(&mut size).ok()?;
    let size = usize::from_str_radix(size.trim_end(), 16).ok()?;
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).ok()?;
    chunk.truncate(size);
    (size > 0).then_some(chunk)
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|it| it.0 == name).map(|it| it.1.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The events of a stream, which is nothing but events and comments.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<String> {
        let text = self.text();
        let rest = text.strip_suffix("\n\n").unwrap_or_else(|| panic!("no end: {text:?}"));
        let events = rest.split("\n\n").filter(|it| !it.starts_with(':'));
        events.map(|it| it.strip_prefix("data: ").unwrap().to_owned()).collect()
    }
}
