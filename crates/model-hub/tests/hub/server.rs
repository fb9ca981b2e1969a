//! A small HTTP server that plays the hub, and misbehaves as it is told to.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use mlxgk_model_hub::{Hub, HubBuilder};
use sha1::Digest;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<u64>,
    pub(crate) token: Option<String>,
    /// How many requests there were for this path before.
    pub(crate) earlier: usize,
}

/// What the server does with a request.
pub(crate) enum Act {
    /// As a hub does.
    Behave,
    /// Answers with a status, headers, and no body.
    Status(u16, &'static str),
    /// Sends so many bytes of the body and closes.
    CutAfter(usize),
    /// Sends so many bytes of the body and then nothing for as long as the client waits.
    StallAfter(usize),
    /// Sends these bytes as the body.
    Send(Vec<u8>),
    /// Sends the whole file whatever range was asked for.
    IgnoreRange,
    /// Sends so many bytes of the file's beginning whatever range was asked for, and closes.
    IgnoreRangeAndCut(usize),
    /// Sends the whole file as a partial answer that begins elsewhere.
    WrongRange,
    /// Sends the file with a pause after each piece.
    Slowly(usize, Duration),
    /// Sends the client to another address for the content.
    Redirect(String),
}

type Rule = Box<dyn Fn(&Request) -> Act + Send + Sync>;

/// A repository on a running server.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves `files` as the repository `a/b`; each request goes through `rule` first.
    pub(crate) fn start(
        files: &[(&str, Vec<u8>)],
        rule: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let files: Arc<BTreeMap<String, Vec<u8>>> =
            Arc::new(files.iter().map(|(name, bytes)| ((*name).into(), bytes.clone())).collect());
        let rule: Arc<Rule> = Arc::new(Box::new(rule));
        let seen = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, rule, seen) = (files.clone(), rule.clone(), seen.clone());
                thread::spawn(move || {
                    // A client that goes away ends its connection, not the server.
                    let _ = serve(&stream, &files, &rule, &seen);
                });
            }
        });
        Self { address, requests }
    }

    /// The model `a/b` with a config and weights of so many bytes.
    pub(crate) fn model(
        size: usize,
        rule: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::start(&model(size), rule)
    }

    /// A hub that is this server, with a cache of its own, which does not wait long.
    pub(crate) fn hub(&self, cache: &Path) -> Hub {
        self.builder(cache).build()
    }

    pub(crate) fn builder(&self, cache: &Path) -> HubBuilder {
        Hub::builder()
            .unwrap()
            .endpoint(&self.address)
            .cache(cache)
            .token(None)
            .offline(false)
            .retry_pause(Duration::from_millis(2))
            .timeout(Duration::from_secs(5))
    }

    pub(crate) fn count(&self, path: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|it| it.path.contains(path)).count()
    }
}

/// A config, a tokenizer, weights of so many bytes, and a file that nobody needs.
pub(crate) fn model(size: usize) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"not needed".to_vec()),
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("model.safetensors", weights(size)),
        ("tokenizer.json", b"{}".to_vec()),
    ]
}

pub(crate) fn weights(size: usize) -> Vec<u8> {
    (0..size).map(|it| (it.wrapping_mul(31) >> 3) as u8).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

fn listing(files: &BTreeMap<String, Vec<u8>>) -> String {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let git = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()))
            .chain_update(bytes)
            .finalize();
        let lfs = if name.ends_with(".safetensors") {
            let hash = hex(&sha2::Sha256::digest(bytes));
            format!(r#", "lfs": {{"sha256": "{hash}", "size": {}}}"#, bytes.len())
        } else {
            String::new()
        };
        let size = bytes.len();
        format!(r#"{{"rfilename": "{name}", "size": {size}, "blobId": "{}"{lfs}}}"#, hex(&git))
    };
    let siblings: Vec<String> = files.iter().map(sibling).collect();
    format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, siblings.join(", "))
}

fn serve(
    stream: &TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    rule: &Rule,
    seen: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut token) = (None, None);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                range = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok()
            }
            "authorization" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    let request = {
        let mut seen = seen.lock().unwrap();
        let earlier = seen.iter().filter(|it| it.path == path).count();
        let request = Request { path: path.clone(), range, token, earlier };
        seen.push(request.clone());
        request
    };
    let name = path.split("/resolve/").nth(1).and_then(|it| it.split_once('/'));
    let body = match name {
        Some((_, name)) => files.get(name).cloned(),
        None if path.starts_with("/api/models/a/b/revision/") => Some(listing(files).into_bytes()),
        None => files.get(path.trim_start_matches("/storage/")).cloned(),
    };
    let Some(body) = body else { return respond(stream, "404 Not Found", "", &[]) };
    let from = range.filter(|it| *it <= body.len() as u64).unwrap_or(0) as usize;
    let ranged = |from: usize| {
        if range.is_none() {
            return ("200 OK".to_owned(), format!("Content-Length: {}\r\n", body.len()));
        }
        let headers = format!(
            "Content-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n",
            body.len() - from,
            body.len() - 1,
            body.len()
        );
        ("206 Partial Content".to_owned(), headers)
    };
    match rule(&request) {
        Act::Behave if range.is_some_and(|it| it >= body.len() as u64) => {
            respond(stream, "416 Range Not Satisfiable", "Content-Length: 0\r\n", &[])
        }
        Act::Behave => {
            let (status, headers) = ranged(from);
            respond(stream, &status, &headers, &body[from..])
        }
        Act::Status(status, headers) => {
            let headers = format!("Content-Length: 0\r\n{headers}");
            respond(stream, &format!("{status} X"), &headers, &[])
        }
        Act::CutAfter(count) => {
            let (status, headers) = ranged(from);
            let end = body.len().min(from + count);
            respond(stream, &status, &headers, &body[from..end])
        }
        Act::StallAfter(count) => {
            let (status, headers) = ranged(from);
            let end = body.len().min(from + count);
            respond(stream, &status, &headers, &body[from..end])?;
            // Ends when the client gives up: there is nothing more to read.
            line.clear();
            reader.read_line(&mut line).map(|_| ())
        }
        Act::Send(bytes) => {
            let headers = format!("Content-Length: {}\r\n", bytes.len());
            respond(stream, "200 OK", &headers, &bytes)
        }
        Act::IgnoreRange => {
            let headers = format!("Content-Length: {}\r\n", body.len());
            respond(stream, "200 OK", &headers, &body)
        }
        Act::IgnoreRangeAndCut(count) => {
            let headers = format!("Content-Length: {}\r\n", body.len());
            respond(stream, "200 OK", &headers, &body[..count])
        }
        Act::WrongRange => {
            let (status, headers) = ranged(0);
            respond(stream, &status, &headers, &body)
        }
        Act::Slowly(piece, pause) => {
            let (status, headers) = ranged(from);
            respond(stream, &status, &headers, &[])?;
            let mut output = stream;
            for piece in body[from..].chunks(piece) {
                output.write_all(piece)?;
                thread::sleep(pause);
            }
            Ok(())
        }
        Act::Redirect(address) => {
            let headers = format!("Content-Length: 0\r\nLocation: {address}\r\n");
            respond(stream, "302 Found", &headers, &[])
        }
    }
}

fn respond(
    mut stream: &TcpStream,
    status: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n")?;
    stream.write_all(body)?;
    stream.flush()
}
