//! Vectors under names, and requests that are steered by them.

use mlx_genkit::steering::{HookPoint, SteeringVectors};
use mlxgk_server::Options;
use serde_json::{Value, json};

use crate::client::{CHAT, TestServer, chat, start, start_with};

/// A vector after layers 1 and 3, strong enough to show.
fn vectors(width: usize) -> SteeringVectors {
    let vector = |salt: usize| (0..width).map(|it| ((it * 37 + salt) % 17) as f32 - 8.0).collect();
    let at = |layer: usize| (HookPoint::ResidPost(layer), vector(layer));
    SteeringVectors::new([at(1), at(3)]).unwrap()
}

fn put(server: &TestServer, name: &str, bytes: &[u8]) -> crate::client::Answer {
    server.ask(&format!("PUT /v1/vectors/{name} HTTP/1.1"), bytes)
}

fn ask(server: &TestServer, steering: &Value) -> Value {
    let fields = json!({"temperature": 0, "max_tokens": 12, "min_new_tokens": 12, "return_token_ids": true, "steering": steering});
    server.chat("Tell me about the harbour.", fields)
}

#[test]
fn vectors_are_put_listed_read_and_deleted() {
    let server = start();
    let bytes = vectors(256).to_bytes();
    let answer = put(&server, "joy", &bytes);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let document = answer.json();
    assert!(document["hash"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!((&document["layers"], &document["width"]), (&json!([1, 3]), &json!(256)));
    assert_eq!(put(&server, "joy", &bytes).status, 200, "the same name once more");
    assert_eq!(server.get("/v1/vectors").json()["data"], json!([document]));
    let file = server.get("/v1/vectors/joy");
    assert_eq!((file.status, file.body), (200, bytes));
    assert_eq!(server.ask("DELETE /v1/vectors/joy HTTP/1.1", b"").json()["deleted"], true);
    assert_eq!(server.ask("DELETE /v1/vectors/joy HTTP/1.1", b"").status, 404);
    assert_eq!(server.get("/v1/vectors/joy").status, 404);
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let server = start();
    let beyond = SteeringVectors::new([(HookPoint::ResidPost(5), vec![1.0; 256])]).unwrap();
    for (name, bytes, status, words) in [
        ("joy", b"junk".to_vec(), 400, "not a safetensors file"),
        ("joy", Vec::new(), 400, "not a safetensors file"),
        ("joy", b"GGUF".to_vec(), 400, "GGUF"),
        ("joy", vectors(64).to_bytes(), 400, "the model's width is 256"),
        ("joy", beyond.to_bytes(), 400, "layers 0 to 4"),
        ("a%20b", vectors(256).to_bytes(), 400, "a vector cannot be named"),
        ("..%2Fx", vectors(256).to_bytes(), 400, "a vector cannot be named"),
        ("joy", vec![0; 17 << 20], 413, "more than"),
    ] {
        let answer = put(&server, name, &bytes);
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        let document = answer.json();
        let message = document["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
    server.assert_alive();
}

#[test]
fn a_request_is_steered_as_it_says() {
    let server = start_with(Options {
        vectors: vec![("joy".to_owned(), vectors(256))],
        ..Options::default()
    });
    let base = ask(&server, &json!(false));
    assert_eq!(base.get("steering"), None);
    let steered = ask(&server, &json!("joy"));
    assert_ne!(steered["choices"], base["choices"]);
    assert_eq!(steered["steering"]["name"], "joy");
    let fingerprint = steered["steering"]["fingerprint"].as_str().unwrap();
    assert!(
        fingerprint.starts_with("add 1 at resid_post.1 to resid_post.3, all, constant ("),
        "{fingerprint}"
    );
    assert_eq!(ask(&server, &json!({"name": "joy", "alpha": 1}))["choices"], steered["choices"]);
    let hash = steered["steering"]["hash"].clone();
    assert_eq!(ask(&server, &json!({"name": hash}))["choices"], steered["choices"]);

    let off = ask(&server, &json!({"name": "joy", "alpha": 0}));
    assert_eq!(
        (&off["choices"], &off["steering"]["fingerprint"]),
        (&base["choices"], &Value::Null)
    );
    for (steering, words) in [
        (json!({"name": "joy", "alpha": -1}), "add -1 at"),
        (json!({"name": "joy", "layers": 3}), "at resid_post.3,"),
        (json!({"name": "joy", "layers": [1, 3], "op": "norm-preserve"}), "norm-preserve 1 at"),
        (json!({"name": "joy", "layers": "2.."}), "at resid_post.3,"),
        (json!({"name": "joy", "positions": "generation"}), "generation"),
        (json!({"name": "joy", "schedule": "warmup:4"}), "warmup:4"),
        (json!({"name": "joy", "kl": 0.01}), "KL up to 0.01"),
    ] {
        let document = ask(&server, &steering);
        let fingerprint = document["steering"]["fingerprint"].as_str().unwrap();
        assert!(fingerprint.contains(words), "{steering}: {fingerprint}");
    }
}

#[test]
fn steering_that_cannot_be_is_refused() {
    let server = start_with(Options {
        vectors: vec![("joy".to_owned(), vectors(256))],
        ..Options::default()
    });
    for (steering, words) in [
        (json!("sorrow"), "there is no vector \"sorrow\""),
        (json!(true), "the name of a vector"),
        (json!({}), "`name` is missing"),
        (json!({"name": "joy", "alpha": "much"}), "`alpha` is a number"),
        (json!({"name": "joy", "layers": 0}), "no vector for layer 0"),
        (json!({"name": "joy", "layers": [9]}), "layer 9 is out of range"),
        (json!({"name": "joy", "layers": {}}), "unknown layers"),
        (json!({"name": "joy", "op": "explode"}), "explode"),
        (json!({"name": "joy", "positions": "everywhere"}), "everywhere"),
        (json!({"name": "joy", "schedule": "never"}), "never"),
        (json!({"name": "joy", "kl": -1}), "KL budget"),
        (json!({"name": "joy", "file": "/etc/passwd"}), "it may have"),
    ] {
        let answer = server.post(CHAT, &chat("Hello", json!({"steering": steering})));
        assert_eq!(answer.status, 400, "{steering}: {}", answer.text());
        let document = answer.json();
        let message = document["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{steering}: {message}");
        assert_eq!(document["error"]["param"], "steering", "{steering}: {message}");
    }
    server.assert_alive();
}
