//! What is longer than anything can be is refused before it takes the memory: files, texts, headers.

use std::fs;

use serde_json::{Value, json};

use crate::{
    bad_input::{IDS, TEXT, check, check_folder, safetensors},
    shared::{bundled, copy, write},
};

/// Files of a model's folder that take no room on the disk, and would take all memory.
#[test]
fn files_of_a_folder_without_end() {
    for file in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors",
        "model.safetensors.index.json",
    ] {
        let folder = bundled();
        if file.ends_with("index.json") {
            fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        }
        fs::File::create(folder.path().join(file)).unwrap().set_len(6 << 30).unwrap();
        check_folder(&TEXT, folder.path(), 1, &[file]);
        if file == "config.json" || file.starts_with("model") {
            let out = tempfile::tempdir().unwrap();
            let (from, out) = (folder.path().to_str().unwrap(), out.path().join("out"));
            check(&["convert", from, "--out", out.to_str().unwrap()], b"", 1, &[file]);
        }
    }
}

/// Of one text there is never more than any context holds.
#[test]
fn texts_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let sea = "The sea is calm. ".repeat(30 << 16);
    let write = |name: &str, value: Value| write(folder.path(), name, value.to_string());
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let message = json!([{"role": "user", "content": sea}]);
    let train = write("train.jsonl", json!({ "text": sea }));
    check(&["train", "--data", &train, "--out", out], b"", 2, &["train.jsonl:1", "MiB"]);
    let short: String = sea.chars().take(5 << 20).collect();
    let train = write("short.jsonl", json!({"prompt": short, "completion": "a"}));
    check(&["train", "--data", &train, "--out", out], b"", 2, &["short.jsonl:1", "5242880 bytes"]);
    let prompts = write("prompts.jsonl", json!({ "prompt": sea }));
    let messages = write("messages.json", message);
    for (flag, file) in [("--prompts-file", &prompts), ("--messages", &messages)] {
        // The chat template adds 50 bytes.
        let words = ["the text", "has 33423410 bytes, and at most 3145728 are encoded"];
        check(&["generate", flag, file], b"", 1, &words);
    }
}

/// More prompts than run at once are not even encoded.
#[test]
fn prompts_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"prompt\": \"The sea\"}\n".repeat(200_000);
    let prompts = write(folder.path(), "prompts.jsonl", lines);
    let words = ["prompts.jsonl has 200000 prompts; at most 65536 run at once"];
    check(&["generate", "--prompts-file", &prompts], b"", 2, &words);
}

/// A header of tensors that no architecture has.
#[test]
fn weights_without_end() {
    let folder = copy("llama");
    let mut header = serde_json::Map::new();
    for at in 0..100_001 {
        let tensor = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
        header.insert(format!("model.layers.0.{at}"), tensor);
    }
    let weights = safetensors(&Value::Object(header).to_string(), b"");
    fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    check_folder(&IDS, folder.path(), 1, &["model.safetensors", "100001 tensors"]);
}

/// Tensors whose bytes together, with what precedes them, are more than 64 bits count.
#[test]
fn sizes_without_end() {
    let size = (1_u64 << 61) - 1;
    let mut header = serde_json::Map::new();
    for at in 0..8 {
        let offsets = [at * size, (at + 1) * size];
        let tensor = json!({"dtype": "U8", "shape": [size], "data_offsets": offsets});
        header.insert(format!("base_model.model.{at}"), tensor);
    }
    let file = safetensors(&Value::Object(header).to_string(), b"");
    let folder = copy("llama");
    fs::write(folder.path().join("model.safetensors"), &file).unwrap();
    check_folder(&IDS, folder.path(), 1, &["model.safetensors", "its header describes"]);
    let cache = write(folder.path(), "cache.safetensors", &file);
    check(&["cache", "show", &cache], b"", 2, &[&cache, "its header describes"]);
    write(folder.path(), "adapter_model.safetensors", &file);
    write(
        folder.path(),
        "adapter_config.json",
        r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 8}"#,
    );
    let adapter = folder.path().to_str().unwrap();
    let damaged = ["adapter_model.safetensors", "its header describes"];
    check(&[&TEXT[..], &["--adapter", adapter]].concat(), b"", 2, &damaged);
}

/// A file of a terabyte that takes no room on the disk.
#[test]
fn text_files_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hollow");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let file = path.to_str().unwrap();
    let words = [file, "1048576 MiB, and at most 256 are read"];
    for flag in ["--json-schema", "--grammar", "--tools"] {
        check(&[&TEXT[..], &[flag, file]].concat(), b"", 2, &words);
    }
    for flag in ["--messages", "--prompts-file"] {
        check(&["generate", flag, file], b"", 2, &words);
    }
    check(&["perplexity", file], b"", 2, &words);
}
