//! `mlxgk cache`, and `--prompt-cache` of `generate` and `chat`.

use serde_json::{Value, json};

use crate::shared::{fixture, mlxgk, mlxgk_with, write};

fn document(args: &[&str]) -> Value {
    let run = mlxgk(args);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

#[test]
fn a_prompt_is_read_once_kept_shown_and_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fox.safetensors");
    let path = path.to_str().unwrap();
    let (begin, whole) = ("The quick brown fox", "The quick brown fox is by the sea");
    for more in [&[][..], &["--max-kv-size", "16"], &["--kv-bits", "8"]] {
        let build = ["cache", "build", "--no-auto-chat", "-p", begin, "--out", path];
        let run = mlxgk(&[&build[..], more].concat());
        assert_eq!((run.status, run.stdout.as_str()), (Some(0), ""), "{}", run.stderr);
        let first = std::fs::read(path).unwrap();
        let run = mlxgk(&[&build[..], more].concat());
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        assert!(std::fs::read(path).unwrap() == first, "the same content, the same bytes");

        let shown = document(&["cache", "show", path, "--format", "json"]);
        let count = shown["tokens"].as_u64().unwrap();
        assert_eq!(shown["token_ids"].as_array().unwrap().len() as u64, count);
        assert_eq!(shown["format"], "mlxgk (loads in mlx-lm since 0.32)");
        let run = mlxgk(&["cache", "show", path]);
        assert!(run.stdout.contains(&format!("tokens    {count}\n")), "{}", run.stdout);

        let ask = ["generate", "--no-auto-chat", "-t", "0", "-n", "12", "--format", "json", "-p"];
        let plain = document(&[&ask[..], &[whole], more].concat());
        assert_eq!(plain.get("cached_tokens"), None);
        // The kind of cache is the file's.
        let cached = document(&[&ask[..], &[whole, "--prompt-cache", path]].concat());
        assert_eq!(cached["cached_tokens"], count);
        assert_eq!(cached["sequences"], plain["sequences"], "{more:?}");
        let other = document(&[&ask[..], &["A cat", "--prompt-cache", path]].concat());
        assert_eq!(other["cached_tokens"], 0);
    }
}

#[test]
fn a_file_that_is_no_cache_of_this_request_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fox.safetensors");
    let path = path.to_str().unwrap();
    assert_eq!(mlxgk(&["cache", "build", "--prompt", "Hello", "--out", path]).status, Some(0));
    let whole = std::fs::read(path).unwrap();
    let half = write(folder.path(), "half.safetensors", &whole[..whole.len() / 2]);
    let foreign = fixture("llama").join("model.safetensors");
    let foreign = foreign.to_str().unwrap();
    let llama = fixture("llama");
    let llama = llama.to_str().unwrap();
    let generate = |file: &str, more: &[&str]| {
        let args = ["generate", "Hello", "-n", "2", "--prompt-cache", file];
        mlxgk(&[&args[..], more].concat())
    };
    for (run, expected) in [
        (generate(&half, &[]), "is truncated"),
        (generate(foreign, &[]), "not one with a prompt cache"),
        (generate("./nowhere.safetensors", &[]), "cannot read ./nowhere.safetensors"),
        (generate(path, &["--kv-bits", "4"]), "--kv-bits (`kv_bits`) asks for one that keeps"),
        (
            generate(path, &["--num-beams", "2"]),
            "a cache to resume is not available with beam search",
        ),
        (
            mlxgk(&["generate", "-m", llama, "--prompt-ids", "5,6", "--prompt-cache", path]),
            "with other weights than those of",
        ),
        (mlxgk(&["cache", "show", &half]), "is truncated"),
        (
            mlxgk(&["cache", "build", "-p", "Hello", "--out", "fox.cache"]),
            "must end with .safetensors",
        ),
        (mlxgk(&["chat", "--prompt-cache", &half]), "is truncated"),
        (
            mlxgk(&["chat", "--prompt-cache", path, "--max-kv-size", "9"]),
            "(`max_kv_size`) asks for",
        ),
        (mlxgk(&["chat", "--save-prompt-cache"]), "--prompt-cache"),
        (
            mlxgk(&["chat", "--prompt-cache", path, "--guidance-scale", "2"]),
            "--prompt-cache cannot be used with",
        ),
    ] {
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
    }
    assert!(std::fs::read(path).unwrap() == whole);
}

#[test]
fn a_file_that_cannot_be_written_is_no_wrong_request() {
    let run = mlxgk(&["cache", "build", "--prompt", "Hello", "--out", "./nowhere/it.safetensors"]);
    assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""), "{}", run.stderr);
    assert!(run.stderr.contains("cannot write ./nowhere/it.safetensors"), "{}", run.stderr);
}

#[test]
fn a_conversation_is_kept_in_a_file_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (cache, first, second) =
        (path("talk.safetensors"), path("first.json"), path("second.json"));
    let chat = ["chat", "--system", "You are gloomy.", "--temp", "0", "--max-tokens", "8"];
    let kept = [&chat[..], &["--prompt-cache", &cache, "--save-prompt-cache"]].concat();
    let run = mlxgk_with(&kept, b"Hello!\n");
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let run = mlxgk_with(&kept, format!("Tell me about the sea.\n/save {first}\n").as_bytes());
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    // In one piece.
    let input = format!("Hello!\nTell me about the sea.\n/save {second}\n");
    assert_eq!(mlxgk_with(&chat, input.as_bytes()).status, Some(0));
    let read =
        |path: &str| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    assert_eq!(read(&first), read(&second));
    let shown = document(&["cache", "show", &cache, "--format", "json"]);
    assert_eq!(shown["layers"], json!({"KVCache": 5}));
    // Without the flag the file is read and left alone.
    let before = std::fs::read(&cache).unwrap();
    let run = mlxgk_with(&[&chat[..], &["--prompt-cache", &cache]].concat(), b"And the wind?\n");
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert!(std::fs::read(&cache).unwrap() == before);
}
