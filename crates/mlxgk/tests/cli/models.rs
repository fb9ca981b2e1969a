//! Models by their hub id, from a cache on disk; the network is never asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::shared::{Run, bundled, run};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache with the bundled model as `org/small`, laid out as every Hugging Face program does.
fn cache() -> TempDir {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models--org--small");
    fs::create_dir_all(folder.join("snapshots").join(COMMIT)).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for entry in fs::read_dir(bundled().path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, snapshot(cache.path()).join(path.file_name().unwrap())).unwrap();
    }
    cache
}

fn snapshot(cache: &Path) -> PathBuf {
    cache.join("models--org--small/snapshots").join(COMMIT)
}

/// Runs `mlxgk` on a cache, with a hub that nobody answers for.
fn mlxgk(cache: &Path, args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlxgk"));
    let command = command.args(args).env("HF_HUB_CACHE", cache).env_remove("HF_HUB_OFFLINE");
    run(command.env("HF_ENDPOINT", "http://127.0.0.1:9").env_remove("HF_TOKEN"), b"")
}

#[test]
fn a_model_in_the_cache_is_loaded_by_its_id() {
    let cache = cache();
    let pinned = format!("org/small@{COMMIT}");
    for (args, id) in [(vec!["--offline"], "org/small"), (vec![], "org/small"), (vec![], &pinned)] {
        let base = ["generate", "--prompt-ids", "5,17", "--max-tokens", "3", "-m", id];
        let run = mlxgk(cache.path(), &[&base[..], &args].concat());
        assert_eq!(run.status, Some(0), "{}", run.stderr);
    }
}

#[test]
fn a_model_in_the_cache_is_converted_by_its_id() {
    let (cache, work) = (cache(), tempfile::tempdir().unwrap());
    let out = work.path().join("out");
    let args = ["convert", "org/small", "--offline", "--bits", "4", "--out", out.to_str().unwrap()];
    let run = mlxgk(cache.path(), &args);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    for file in ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"] {
        assert!(fs::symlink_metadata(out.join(file)).unwrap().is_file(), "{file}");
    }
    // What is not whole is not converted.
    fs::remove_file(snapshot(cache.path()).join("model.safetensors")).unwrap();
    let out = work.path().join("other");
    let args = ["convert", "org/small", "--offline", "--out", out.to_str().unwrap()];
    let run = mlxgk(cache.path(), &args);
    assert_eq!(run.status, Some(1), "{}", run.stdout);
    assert!(run.stderr.contains("org/small@main is not complete in the cache"), "{}", run.stderr);
    assert!(!out.exists());
}

#[test]
fn the_architectures_are_listed_with_what_they_were_checked_against() {
    let cache = tempfile::tempdir().unwrap();
    let text = mlxgk(cache.path(), &["models", "--supported"]);
    assert_eq!(text.status, Some(0), "{}", text.stderr);
    let llama = text.stdout.lines().find(|it| it.starts_with("llama ")).unwrap();
    assert!(llama.ends_with("transformers; mlx-lm for quantized weights"), "{llama}");
    let json = mlxgk(cache.path(), &["models", "--supported", "--format", "json"]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let listed = json["supported"].as_array().unwrap();
    assert_eq!(listed.len(), text.stdout.lines().count());
    assert!(listed.iter().any(|it| it["model_type"] == "gpt_oss"));
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let cache = cache();
    for (id, flag, words) in [
        ("org/other", Some("--offline"), "org/other@main is not complete in the cache"),
        ("org/small@v2", Some("--offline"), "org/small@v2 is not complete in the cache"),
        ("not a model", None, "\"not a model\" is not a model: expected a folder, or a hub id"),
    ] {
        let base = ["generate", "--prompt-ids", "5", "--model", id];
        let run = mlxgk(cache.path(), &[&base[..], flag.as_slice()].concat());
        assert_eq!(run.status, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(words), "{}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn models_are_listed_and_removed() {
    let cache = cache();
    let list = mlxgk(cache.path(), &["models"]);
    assert_eq!(list.status, Some(0), "{}", list.stderr);
    assert!(list.stdout.starts_with("org/small"), "{}", list.stdout);
    assert!(list.stdout.trim_end().ends_with("0123456789ab  main"), "{}", list.stdout);

    let json = mlxgk(cache.path(), &["models", "--format", "json"]).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    let model = &json["models"][0];
    assert_eq!(model["id"], "org/small");
    assert_eq!(model["commit"], COMMIT);
    assert_eq!(model["revisions"][0], "main");
    assert_eq!(model["complete"], true);
    assert_eq!(model["folder"].as_str().unwrap(), snapshot(cache.path()).to_str().unwrap());

    fs::remove_file(snapshot(cache.path()).join("model.safetensors")).unwrap();
    assert!(mlxgk(cache.path(), &["models"]).stdout.trim_end().ends_with("incomplete"));

    let removed = mlxgk(cache.path(), &["models", "remove", "org/small"]);
    assert_eq!(removed.status, Some(0), "{}", removed.stderr);
    assert!(removed.stdout.starts_with("removed org/small"), "{}", removed.stdout);
    assert_eq!(mlxgk(cache.path(), &["models"]).stdout, "");
    let again = mlxgk(cache.path(), &["models", "remove", "org/small"]);
    assert_eq!(again.status, Some(1));
    assert!(again.stderr.contains("org/small is not in the cache"), "{}", again.stderr);
}
