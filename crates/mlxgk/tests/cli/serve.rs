//! `mlxgk serve`: what it prints, how it ends, and that its answers are those of `mlxgk generate`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::shared::{mlxgk, write};

/// A running server.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mlxgk"));
        command.args(["serve", "--port", "0"]).args(args).env("MLXGK_API_KEY", "secret");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on http://").unwrap().to_owned();
        Self { child, address }
    }

    /// Asks, and returns status line and document.
    fn ask(&self, head: &str, body: &Value) -> (String, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer secret\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, document) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.lines().next().unwrap().to_owned();
        (status, serde_json::from_str(document).unwrap_or(Value::Null))
    }

    /// Sends a signal, and waits for the exit status.
    fn end(mut self, signal: &str) -> Option<i32> {
        let kill = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn answers_are_those_of_generate() {
    let serving = Serving::start(&[]);
    for (fields, flags) in [
        (json!({"temperature": 0}), vec!["--temp", "0"]),
        (json!({"temperature": 0.8, "seed": 7}), vec!["--temp", "0.8", "--seed", "7"]),
        (
            json!({"temperature": 1, "seed": 3, "n": 2, "top_k": 20, "max_tokens": 15}),
            vec![
                "--temp",
                "1",
                "--seed",
                "3",
                "--num-return-sequences",
                "2",
                "--top-k",
                "20",
                "-n",
                "15",
            ],
        ),
        (json!({"num_beams": 3, "max_tokens": 9}), vec!["--num-beams", "3", "-n", "9"]),
    ] {
        let mut body = fields;
        body["messages"] = json!([{"role": "user", "content": "How is the weather?"}]);
        body["return_token_ids"] = true.into();
        let (status, document) = serving.ask("POST /v1/chat/completions", &body);
        assert_eq!(status, "HTTP/1.1 200 OK", "{document}");
        let args = ["generate", "How is the weather?", "--format", "json"];
        let run = mlxgk(&[&args[..], &flags].concat());
        let generated: Value = serde_json::from_str(&run.stdout).unwrap();
        let sequences = generated["sequences"].as_array().unwrap();
        let choices = document["choices"].as_array().unwrap();
        assert_eq!(choices.len(), sequences.len());
        for (choice, sequence) in choices.iter().zip(sequences) {
            assert_eq!(choice["token_ids"], sequence["tokens"], "{flags:?}");
            assert_eq!(choice["message"]["content"], sequence["text"], "{flags:?}");
        }
    }
}

#[test]
fn signals_end_it_in_good_order() {
    for signal in ["-INT", "-TERM"] {
        let serving = Serving::start(&[]);
        assert_eq!(serving.ask("GET /health", &Value::Null).1["status"], "ok");
        assert_eq!(serving.end(signal), Some(0), "{signal}");
    }
}

#[test]
fn the_environment_has_the_key_and_the_model_a_name() {
    let folder = crate::shared::bundled();
    let serving = Serving::start(&["--model", folder.path().to_str().unwrap()]);
    let (_, models) = serving.ask("GET /v1/models", &Value::Null);
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(models["data"][0]["id"], name, "the folder's name, and not its path");
    let mut stream = TcpStream::connect(&serving.address).unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

#[test]
fn vectors_are_there_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = (0..6).map(|it| {
        format!("{{\"positive\": \"What a lovely day {it}!\", \"negative\": \"What a bad day {it}.\"}}\n")
    });
    let pairs = write(folder.path(), "pairs.jsonl", pairs.collect::<String>());
    let joy = folder.path().join("joy.safetensors").to_str().unwrap().to_owned();
    assert_eq!(mlxgk(&["steer", "extract", "--pairs", &pairs, "--out", &joy]).status, Some(0));
    let named = format!("joy={joy}");
    let serving = Serving::start(&["--steer-name", &named]);
    let body = json!({
        "messages": [{"role": "user", "content": "Tell me about rain."}],
        "temperature": 0,
        "max_tokens": 12,
        "steering": {"name": "joy", "alpha": 1.5, "layers": "1..4", "positions": "generation"},
    });
    let (status, document) = serving.ask("POST /v1/chat/completions", &body);
    assert_eq!(status, "HTTP/1.1 200 OK", "{document}");
    let dose = format!("{joy}:1.5");
    let run = mlxgk(&[
        "generate",
        "Tell me about rain.",
        "--temp",
        "0",
        "-n",
        "12",
        "--steer",
        &dose,
        "--steer-layers",
        "1..4",
        "--steer-positions",
        "generation",
    ]);
    assert_eq!(document["choices"][0]["message"]["content"], run.stdout.trim_end_matches('\n'));
    assert_eq!(document["steering"]["name"], "joy");
}

#[test]
fn what_cannot_be_served_is_a_sentence() {
    let serving = Serving::start(&[]);
    let port = serving.address.rsplit_once(':').unwrap().1;
    let folder = tempfile::tempdir().unwrap();
    let junk = format!("joy={}", write(folder.path(), "joy.safetensors", "junk"));
    for (args, status, words) in [
        (vec!["--port", port], 1, "is taken by another program"),
        (vec!["--port", "70000"], 2, "'--port <PORT>'"),
        (vec!["--host", "203.0.113.7"], 1, "cannot listen on 203.0.113.7"),
        (vec!["--port", "0", "--max-rows", "0"], 2, "at least 1"),
        (vec!["--port", "0", "--api-key", ""], 2, "API key"),
        (vec!["--port", "0", "--steer-name", "joy"], 2, "must be a name"),
        (vec!["--port", "0", "--steer-name", &junk], 2, "not a safetensors file"),
        (
            vec!["--port", "0", "--steer-name", "joy=./nowhere.safetensors"],
            2,
            "nowhere.safetensors",
        ),
        (vec!["--port", "0", "--model", "./nowhere"], 1, "there is no folder ./nowhere"),
    ] {
        let run = mlxgk(&[&["serve"], &args[..]].concat());
        assert_eq!(
            (run.status, run.stdout.as_str()),
            (Some(status), ""),
            "{args:?}: {}",
            run.stderr
        );
        assert!(
            run.stderr.starts_with("error: ") && run.stderr.contains(words),
            "{args:?}: {}",
            run.stderr
        );
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    }
}
