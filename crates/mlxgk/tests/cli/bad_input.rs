//! Whatever is wrong is said in one sentence that names it, with the right exit status.

use std::{fs, path::Path};

use crate::shared::{bundled, copy, fixture, mlxgk_with, set, write};
use serde_json::{Value, json};

/// Runs `mlxgk` and checks that it fails as it should.
#[track_caller]
pub(crate) fn check(args: &[&str], stdin: &[u8], status: i32, words: &[&str]) {
    let run = mlxgk_with(args, stdin);
    let about = format!("{args:?}\nstdout: {}\nstderr: {}", run.stdout, run.stderr);
    assert_eq!(run.status, Some(status), "{about}");
    assert_eq!(run.stdout, "", "{about}");
    assert!(run.stderr.starts_with("error: "), "{about}");
    assert_eq!(run.stderr.lines().count(), 1, "more than a sentence: {about}");
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is missing: {about}");
    }
}

const NORM: &str = "model.norm.weight";
pub(crate) const IDS: [&str; 5] = ["generate", "--max-tokens", "2", "--prompt-ids", "5,17"];
pub(crate) const TEXT: [&str; 5] = ["generate", "--max-tokens", "2", "--prompt", "hello"];

/// Checks `args` on a folder that a function has broken.
#[track_caller]
pub(crate) fn check_folder(args: &[&str], folder: &Path, status: i32, words: &[&str]) {
    check(&[args, &["--model", folder.to_str().unwrap()]].concat(), b"", status, words);
}

#[test]
fn folders() {
    let whole = fixture("llama");
    check_folder(&IDS, Path::new("/nowhere"), 1, &["no folder /nowhere"]);
    check_folder(&IDS, &whole.join("config.json"), 1, &["config.json is a file"]);
    check_folder(&TEXT, &whole, 1, &["no tokenizer.json", "token ids"]);
    check_folder(&["score", "--text", "hello"], &whole, 1, &["no tokenizer.json"]);
    let messages = r#"[{"role": "user", "content": "hello"}]"#;
    check_folder(&["generate", "--messages-json", messages], &whole, 1, &["no tokenizer.json"]);
    for (file, words) in [
        ("config.json", "config.json"),
        (
            "model.safetensors",
            "no weights: neither model.safetensors nor model.safetensors.index.json",
        ),
    ] {
        let folder = copy("llama");
        fs::remove_file(folder.path().join(file)).unwrap();
        check_folder(&IDS, folder.path(), 1, &[words]);
        check_folder(&["info"], folder.path(), 1, &[words]);
    }
}

/// A safetensors file whose header is `header`, as it stands, before the given data.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn weights() {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
    let data = &whole[8 + length..];
    let with = |edit: fn(&mut Value)| {
        let mut header = header.clone();
        edit(&mut header);
        safetensors(&header.to_string(), data)
    };
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (Vec::new(), &["truncated", "0 bytes"]),
        (whole[..5].to_vec(), &["truncated", "5 bytes"]),
        (whole[..8].to_vec(), &["truncated"]),
        (whole[..100].to_vec(), &["truncated"]),
        (whole[..whole.len() / 2].to_vec(), &["damaged"]),
        (whole[..whole.len() - 1].to_vec(), &["damaged"]),
        ([&whole[..], b"more"].concat(), &["damaged"]),
        ([&[255; 8], &whole[8..]].concat(), &["header claims 18446744073709551615 bytes"]),
        (b"a text that is not a weight file".to_vec(), &["not a safetensors file"]),
        (b"version https://git-lfs.github.com/spec/v1\noid 1\n".to_vec(), &["git lfs pull"]),
        (safetensors("", b""), &["corrupt header"]),
        (safetensors("not JSON", data), &["corrupt header"]),
        (safetensors("[]", data), &["corrupt header"]),
        (with(|it| it[NORM]["dtype"] = json!("Q3")), &["corrupt header", "Q3"]),
        (with(|it| it[NORM]["dtype"] = json!("I32")), &["model.norm.weight", "I32"]),
        (with(|it| it[NORM]["shape"] = json!([-1])), &["corrupt header"]),
        (with(|it| it[NORM]["shape"] = json!([1_u64 << 40, 1_u64 << 40])), &["corrupt header"]),
        (with(|it| it[NORM]["shape"] = json!([7])), &["corrupt header"]),
        (
            with(|it| it[NORM]["data_offsets"] = it["lm_head.weight"]["data_offsets"].clone()),
            &["corrupt header"],
        ),
    ];
    for (bytes, words) in cases {
        fs::write(&path, bytes).unwrap();
        check_folder(&IDS, folder.path(), 1, &[&["model.safetensors"], words].concat());
    }
}

#[test]
fn tensors() {
    for (edit, words) in [
        (
            (|it| {
                let tensor = it.as_object_mut().unwrap().remove(NORM).unwrap();
                it["model.nerm.weight"] = tensor;
            }) as fn(&mut Value),
            "`model.norm.weight` is missing",
        ),
        (
            |it| it[NORM]["shape"] = json!([4, 8]),
            "`model.norm.weight` has shape [4, 8], but config.json makes it [32]",
        ),
    ] {
        let folder = copy("llama");
        let path = folder.path().join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&whole[8..8 + length]).unwrap();
        edit(&mut header);
        fs::write(&path, safetensors(&header.to_string(), &whole[8 + length..])).unwrap();
        check_folder(&IDS, folder.path(), 1, &[words]);
    }
    let extra = copy("llama");
    set(&extra.path().join("config.json"), "num_hidden_layers", json!(2));
    check_folder(&IDS, extra.path(), 1, &["no tensor `model.layers.2."]);
}

#[test]
fn weights_of_nan() {
    for value in [f32::NAN, f32::INFINITY] {
        let folder = copy("llama");
        let path = folder.path().join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        let length = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let data = value.to_le_bytes().repeat((whole.len() - length) / 4);
        fs::write(&path, [&whole[..length], &data].concat()).unwrap();
        check_folder(&IDS, folder.path(), 1, &["NaN"]);
        check_folder(&[&IDS[..], &["--temp", "1"]].concat(), folder.path(), 1, &["NaN"]);
        check_folder(&["score", "--prompt-ids", "5,17"], folder.path(), 1, &["NaN"]);
    }
}

#[test]
fn shards() {
    let folder = copy("llama");
    let index = "model.safetensors.index.json";
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("shard.safetensors"))
        .unwrap();
    let map = |file: &str| json!({"weight_map": {"model.norm.weight": file}}).to_string();
    for (content, words) in [
        ("{".to_owned(), vec!["not valid JSON"]),
        ("[]".to_owned(), vec!["must hold a JSON object"]),
        ("{}".to_owned(), vec!["`weight_map` is missing"]),
        (r#"{"weight_map": 3}"#.to_owned(), vec!["`weight_map` must be an object"]),
        (r#"{"weight_map": {"a": 3}}"#.to_owned(), vec!["`a` must name a file"]),
        (map("gone.safetensors"), vec!["gone.safetensors"]),
        (
            map("../llama/model.safetensors"),
            vec!["`model.norm.weight` must name a file in the same folder"],
        ),
        (map("/etc/passwd"), vec!["must name a file in the same folder"]),
        (map(".."), vec!["must name a file in the same folder"]),
        (map("config.json"), vec!["not a safetensors file"]),
        (
            json!({"weight_map": {"of.nobody": "shard.safetensors"}}).to_string(),
            vec!["`of.nobody`", "shard.safetensors"],
        ),
    ] {
        write(folder.path(), index, content);
        check_folder(&IDS, folder.path(), 1, &words);
    }
}

#[test]
fn configs() {
    let folder = copy("llama");
    let path = folder.path().join("config.json");
    for (content, words) in [
        (&b""[..], "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "must hold a JSON object, found a list"),
        (b"{}", "`model_type` is missing"),
    ] {
        fs::write(&path, content).unwrap();
        check_folder(&IDS, folder.path(), 2, &["config.json", words]);
    }
    let huge = json!(1_u64 << 62);
    for (model, field, value, words) in [
        ("llama", "model_type", json!("gpt2"), "is \"gpt2\", which is not supported; known are "),
        ("llama", "hidden_size", json!("wide"), "must be a whole number, found \"wide\""),
        ("llama", "hidden_size", json!(-4), "must be a whole number, found -4"),
        ("llama", "num_attention_heads", json!(0), "must be above 0"),
        ("llama", "num_key_value_heads", json!(0), "does not divide"),
        ("llama", "head_dim", json!(0), "must be above 0"),
        ("llama", "vocab_size", huge.clone(), "must be a whole number"),
        ("llama", "intermediate_size", json!(1_u64 << 40), "at most 2147483647"),
        ("llama", "num_hidden_layers", json!(1_u64 << 40), "at most 65535"),
        ("qwen3", "num_hidden_layers", json!(1_u64 << 40), "at most 65535"),
        ("gemma3", "num_hidden_layers", json!(1_u64 << 40), "at most 65535"),
        ("llama", "max_position_embeddings", json!(0), "must be above 0"),
        ("llama", "max_position_embeddings", huge, "must be a whole number"),
        ("llama", "rope_parameters", json!({"rope_theta": 0}), "`rope_theta` must be above 0"),
        ("llama", "rope_parameters", json!("none"), "must be an object, found \"none\""),
        ("llama", "tie_word_embeddings", json!("no"), "must be true or false"),
        ("qwen3-moe", "num_experts_per_tok", json!(0), "`num_experts_per_tok` is 0"),
        ("lfm2", "block_ffn_dim_multiplier", json!(1e300), "makes layers too wide"),
    ] {
        let folder = copy(model);
        set(&folder.path().join("config.json"), field, value);
        check_folder(&IDS, folder.path(), 2, &["config.json", field, words]);
    }
}

#[test]
fn prompts() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| write(folder.path(), name, content);
    let model = copy("llama");
    let model = model.path().to_str().unwrap();
    let empty = "the prompt is empty";
    for (args, words) in [
        (["--prompt-ids", "151"], "token id 151 is outside the vocabulary of 151"),
        (["--prompt-ids", "-1"], "\"-1\" is not a token id"),
        (["--prompt-ids", "5,x"], "\"x\" is not a token id"),
        (["--prompt-ids", "5,,6"], "\"\" is not a token id"),
        (["--prompt-ids", "4294967296"], "\"4294967296\" is not a token id"),
        (["--prompt-ids", ""], empty),
        (["--prompts-file", &file("a", b"")], "holds no prompt"),
        (["--prompts-file", &file("b", b"{}")], "line 1 has neither a \"prompt\""),
        (["--prompts-file", &file("c", b"[\"\xff\"]")], "c is not valid UTF-8 at byte 2"),
        (["--prompts-file", &file("cut", b"[\"a\",")], "not a JSON array of prompts"),
        (
            ["--prompts-file", &file("line", b"{\"prompt\": \"a\"}\n{\"pro\n")],
            "line 2 is not valid JSON",
        ),
        (["--prompts-file", &file("none", b"\n{\"prompt\": \"\"}\n")], "line 2 is empty"),
        (["--prompts-file", &file("role", b"{\"messages\": [{}]}\n")], "has no \"role\""),
        (["--prompts-file", &file("d", b"[]")], "holds no prompt"),
        (["--prompts-file", &file("e", b"[[5], []]")], "prompt 1 is empty"),
        (["--prompts-file", &file("f", b"[\"a\", \"\"]")], "prompt 1 is empty"),
        (["--prompts-file", &file("g", b"[[5], null]")], "prompt 1 is neither a text"),
        (["--prompts-file", &file("h", b"[[5.5]]")], "prompt 0 is not a list of token ids"),
        (["--prompts-file", &file("i", b"[[5], [-1]]")], "prompt 1 is not a list of token ids"),
        (["--prompts-file", &file("j", b"[[5], [151]]")], "prompt 1: token id 151"),
        (["--prompts-file", "/nowhere.json"], "cannot read /nowhere.json"),
    ] {
        check(&["generate", "--model", model, args[0], args[1]], b"", 2, &[words]);
    }
    for (args, stdin, words) in [
        (["--prompt", ""], &b""[..], empty),
        (["--prompt", "-"], b"", empty),
        (["--prompt", "-"], b"\n", empty),
        (["--prompt", "-"], b"a\xffb", "stdin is not valid UTF-8 at byte 1"),
        (["--messages-json", ""], b"", "not a JSON array"),
        (["--messages-json", "{}"], b"", "not a JSON array"),
        (["--messages", "-"], b"[", "- is not a JSON array"),
        (["--messages", "/nowhere.json"], b"", "cannot read /nowhere.json"),
        (["--messages-json", "[]"], b"", "it is empty"),
        (["--messages-json", r#"[{"content": "a"}]"#], b"", "has no \"role\""),
        (["--messages-json", r#"[{"role": "user"}]"#], b"", "has no \"content\""),
        (
            ["--messages-json", r#"[{"role": "user", "content": 3}]"#],
            b"",
            "neither a text nor a list",
        ),
    ] {
        check(&["generate", args[0], args[1]], stdin, 2, &[words]);
    }
    check(&["score", "--text", ""], b"", 2, &[empty]);
}

/// What a shell's `<(command)` is: a pipe that has no name.
#[cfg(unix)]
#[test]
fn pipes_without_a_name_are_read() {
    let args = [&TEXT[..], &["--generation-config", "/dev/stdin"]].concat();
    let run = mlxgk_with(&args, br#"{"do_sample": false}"#);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    check(&args, br#"{"top_p": "much"}"#, 2, &["/dev/stdin", "`top_p`"]);
}

/// Reading a pipe would wait for a writer, and a device might never end.
#[cfg(unix)]
#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = pipe.to_str().unwrap();
    for (file, words) in [
        (pipe, "a device or a pipe, not a file"),
        ("/dev/zero", "a device or a pipe, not a file"),
        (folder.path().to_str().unwrap(), "is a folder, not a file"),
    ] {
        for flag in ["--json-schema", "--grammar", "--tools"] {
            check(&[&TEXT[..], &[flag, file]].concat(), b"", 2, &[file, words]);
        }
        check(&["generate", "--prompts-file", file], b"", 2, &[file, words]);
        check(&["steer", "show", file], b"", 2, &[file, words]);
        check(&[&TEXT[..], &["--steer", &format!("{file}:1")]].concat(), b"", 2, &[file, words]);
        if file != folder.path().to_str().unwrap() {
            let config = [&TEXT[..], &["--generation-config", file]].concat();
            check(&config, b"", 2, &[file, "a device or a pipe, not a file"]);
            check(&[&TEXT[..], &["--soft-prompt", file]].concat(), b"", 2, &[file, words]);
        }
    }
}

#[cfg(unix)]
#[test]
fn arguments_that_are_not_utf8() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};
    for flag in ["--prompt", "--prompt-ids", "--messages-json", "--system"] {
        let output = Command::new(env!("CARGO_BIN_EXE_mlxgk"))
            .args(["generate", flag])
            .arg(OsStr::from_bytes(b"a\xff"))
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("UTF-8") && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn command_lines() {
    let model = fixture("llama");
    let base = ["generate", "--model", model.to_str().unwrap(), "--prompt-ids", "5,17"];
    for (args, words) in [
        (vec!["--max-tokens", "0"], "--max-tokens (`max_new_tokens`) must be at least 1"),
        (vec!["--max-new-tokens", "0"], "--max-new-tokens (`max_new_tokens`) must be at least 1"),
        (vec!["--set", "max_new_tokens=0"], " `max_new_tokens` must be at least 1"),
        (vec!["--max-tokens", "-1"], "'-1' for '--max-tokens <N>'"),
        (vec!["--temp", "-1"], "--temp must be 0 or more, but is -1"),
        (vec!["--temp", "nan"], "must be a finite number"),
        (vec!["--temp", "hot"], "must be a finite number"),
        (vec!["--temp", "0", "--do-sample"], "--temp 0 is greedy"),
        (vec!["--temp", "1", "--do-sample=false"], "--temp 1 samples"),
        (vec!["--do-sample", "yes"], "'yes' for '--do-sample"),
        (vec!["--temp", "1", "--temperature", "1"], "by --temp and by --temperature"),
        (vec!["--temp", "1", "--top-p", "1.5"], "`top_p`"),
        (vec!["--temp", "1", "--top-p", "-0.5"], "`top_p`"),
        (vec!["--temp", "1", "--top-k", "-1"], "'-1' for '--top-k <K>'"),
        (vec!["--temp", "1", "--min-p", "2"], "`min_p`"),
        (vec!["--temp", "1", "--top-h", "2"], "`top_h`"),
        (vec!["--temp", "1", "--typical-p", "0"], "`typical_p`"),
        (vec!["--temp", "1", "--epsilon-cutoff", "3"], "`epsilon_cutoff`"),
        (vec!["--temp", "1", "--eta-cutoff", "3"], "`eta_cutoff`"),
        (vec!["--repetition-penalty", "0"], "`repetition_penalty`"),
        (vec!["--suppress-tokens", "a"], "'a' for '--suppress-tokens"),
        (vec!["--num-return-sequences", "2"], "set --do-sample"),
        (
            vec!["--temp", "1", "--num-return-sequences", "0"],
            "--num-return-sequences (`num_return_sequences`) must be at least 1",
        ),
        (vec!["--temp", "1", "--num-return-sequences", "1000000000000"], "`num_return_sequences`"),
        (vec!["--num-beams", "0"], "--num-beams (`num_beams`) must be at least 1"),
        (vec!["--num-beams", "1000000000000"], "`num_beams`"),
        (vec!["--num-beams", "2", "--num-return-sequences", "3"], "(`num_beams`), which is 2"),
        (vec!["--stop", "end"], "has no tokenizer.json"),
        (vec!["--max-time", "-1"], "--max-time (`max_time`) must be a number of seconds"),
        (vec!["--prompt-lookup", "0"], "`prompt_lookup_num_tokens`"),
        (
            vec!["--prompt-lookup", "3", "--temp", "1", "--num-return-sequences", "2"],
            "is not available with assisted decoding",
        ),
        (
            vec!["--set", "assistant_early_exit=9"],
            "`assistant_early_exit` is 9, but must be between 1 and the model's",
        ),
        (vec!["--negative-prompt", "no"], "need a --guidance-scale"),
        (vec!["--num-assistant-tokens", "3"], "--assistant"),
        (vec!["--seed", "x"], "'x' for '--seed <N>'"),
        (vec!["--seed", "-1"], "'-1' for '--seed <N>'"),
        (vec!["--rng", "numpy"], "[possible values: torch, fast]"),
        (vec!["--dtype", "float64"], "[possible values: auto, float32, bfloat16, float16]"),
        (vec!["--device", "tpu"], "[possible values: cpu, gpu]"),
        (vec!["--format", "xml"], "[possible values: text, json, jsonl]"),
        (vec!["--prompt", "twice"], "cannot be used with"),
        (vec!["--system", "me"], "--system cannot be used with"),
        (vec!["--no-thinking"], "--no-thinking goes into a chat template"),
        (vec!["--template-var", "x"], "'x' for '--template-var"),
        (vec!["--tools", "/nowhere"], "cannot read /nowhere"),
        (vec!["--trim-stop"], "--trim-stop needs a stop string"),
        (vec!["--penalty-alpha", "high"], "--penalty-alpha (`penalty_alpha`) must be a number"),
        (vec!["--unheard-of"], "unexpected argument '--unheard-of'"),
        (vec!["--max-token", "3"], "a similar argument exists: '--max-tokens'"),
    ] {
        check(&[&base[..], &args].concat(), b"", 2, &[words]);
    }
    check(&["generate"], b"", 2, &["--prompt", "--prompts-file"]);
    check(&["produce"], b"", 2, &["'produce'"]);
    check(&["steer", "melt"], b"", 2, &["'melt'"]);
    check(&["steer", "extract", "--held-out", "-1"], b"", 2, &["--pairs", "--out"]);
}

#[cfg(not(target_os = "macos"))]
#[test]
fn a_gpu_that_is_not_there() {
    check(&["info", "--device", "gpu"], b"", 2, &["--device gpu", "no GPU"]);
}

#[test]
fn generation_configs() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("llama");
    let base = ["generate", "--model", model.to_str().unwrap(), "--prompt-ids", "5,17"];
    for (content, words) in [
        ("", vec!["not valid JSON"]),
        ("[]", vec!["must be a JSON object"]),
        (r#"{"top_k": "a"}"#, vec!["`top_k` must be an integer, found the string \"a\""]),
        (r#"{"top_k": -1}"#, vec!["`top_k` must be an integer of 0 or more"]),
        (r#"{"do_sample": 1}"#, vec!["`do_sample` must be true or false"]),
        (r#"{"eos_token_id": [2, "x"]}"#, vec!["`eos_token_id[1]` must be an integer"]),
        (r#"{"max_new_tokens": 0}"#, vec!["`max_new_tokens` must be at least 1"]),
        (r#"{"do_sample": true, "temperature": 0}"#, vec!["`temperature`"]),
        (r#"{"max_length": 2}"#, vec!["`max_length` is 2"]),
        (r#"{"bad_words_ids": [[999]]}"#, vec!["`bad_words_ids` names token 999"]),
        (r#"{"sequence_bias": [[[999], 1.0]]}"#, vec!["`sequence_bias` names token 999"]),
        (r#"{"prefill_chunk_size": 0}"#, vec!["`prefill_chunk_size` must be at least 1"]),
        (r#"{"use_mtp": true}"#, vec!["`use_mtp` is true", "no multi-token-prediction heads"]),
        (r#"{"is_assistant": true}"#, vec!["`is_assistant`", "not implemented yet"]),
        (r#"{"force_words_ids": [[5]]}"#, vec!["`force_words_ids`", "set --num-beams"]),
        (
            r#"{"force_words_ids": [[[5, 6], [5]]], "num_beams": 2}"#,
            vec!["[5] is the beginning of [5, 6]"],
        ),
        (r#"{"num_beams": 4, "num_beam_groups": 3}"#, vec!["`num_beam_groups`"]),
        (
            r#"{"do_sample": true, "num_return_sequences": 2, "pad_token_id": 999}"#,
            vec!["`pad_token_id`", "999", "vocabulary of 151"],
        ),
    ] {
        let file = write(folder.path(), "gen.json", content);
        check(&[&base[..], &["--generation-config", &file]].concat(), b"", 2, &words);
    }
    let missing = [&base[..], &["--generation-config", "/nowhere.json"]].concat();
    check(&missing, b"", 2, &["/nowhere.json"]);

    for (content, words) in [
        (&b"{"[..], "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (br#"{"temperature": "warm"}"#, "`temperature` must be a number"),
    ] {
        let folder = copy("llama");
        write(folder.path(), "generation_config.json", content);
        let path = folder.path().join("generation_config.json");
        check_folder(&IDS, folder.path(), 2, &[path.to_str().unwrap(), words]);
    }
    let old = copy("llama");
    fs::remove_file(old.path().join("generation_config.json")).unwrap();
    set(&old.path().join("config.json"), "eos_token_id", json!("</s>"));
    check_folder(&IDS, old.path(), 2, &["config.json: `eos_token_id` must be an integer"]);
}

#[test]
fn tokenizers_and_templates() {
    for (file, content, words) in [
        ("tokenizer.json", &b"{"[..], "tokenizer.json: "),
        ("tokenizer.json", b"{}", "tokenizer.json: "),
        ("tokenizer.json", b"\xff", "tokenizer.json: not UTF-8 at byte 0"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: "),
        ("tokenizer_config.json", br#"{"eos_token": 3}"#, "`eos_token` is not a token"),
        ("chat_template.jinja", b"{% for x in %}", "chat_template.jinja, line 1: syntax error"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: not UTF-8 at byte 0"),
        ("chat_template.jinja", b"{{ f() }}", "chat_template.jinja, line 1: "),
    ] {
        let folder = bundled();
        write(folder.path(), file, content);
        check_folder(&TEXT, folder.path(), 1, &[words]);
    }
    let refusing = bundled();
    write(refusing.path(), "chat_template.jinja", "{{ raise_exception('roles must alternate') }}");
    check_folder(&TEXT, refusing.path(), 2, &["roles must alternate"]);
    write(
        refusing.path(),
        "chat_template.jinja",
        r"{{ raise_exception('roles\r\n\n must \x1b[2J') }}",
    );
    check_folder(&TEXT, refusing.path(), 2, &["roles must \u{fffd}[2J"]);

    let none = bundled();
    fs::remove_file(none.path().join("chat_template.jinja")).unwrap();
    for (flags, words) in [
        (&["--auto-chat"][..], "no chat template"),
        (&["--system", "Be brief."], "--system needs a chat template"),
    ] {
        check_folder(&[&TEXT[..], flags].concat(), none.path(), 2, &[words]);
    }
}

#[test]
fn grammars_and_other_fields() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let with = |more: &[&str], words: &[&str]| check(&[&TEXT, more].concat(), b"", 2, words);
    with(&["--json-schema", "/nowhere"], &["cannot read /nowhere"]);
    with(&["--json-schema", &file("cut", "{\"type\":")], &["cut is not valid JSON"]);
    with(&["--json-schema", &file("null", "null")], &["null holds null", "an object"]);
    with(&["--json-schema", &file("list", "[1]")], &["must be an object or a boolean"]);
    with(&["--json-schema", &file("type", "{\"type\": \"colour\"}")], &["JSON schema", "colour"]);
    with(&["--regex", "("], &["regular expression", "unclosed group"]);
    with(&["--regex", ""], &["regular expression is empty"]);
    with(&["--grammar", &file("empty", " ")], &["grammar is empty"]);
    with(&["--grammar", &file("lark", "start: nothing")], &["grammar cannot be used", "nothing"]);
    with(&["--regex", "a", "--grammar", "b"], &["--regex", "--grammar"]);
    with(&["--regex", "a", "--set", "json_schema={}"], &["--regex", "`json_schema`"]);
    with(&["--set", "top_k"], &["--set", "FIELD=JSON"]);
    with(&["--set", "top_p=high"], &["`top_p`", "a number", "high"]);
    with(&["--set", "unheard_of=1"], &["`unheard_of`"]);
    with(
        &["--top-p", "0.5", "--set", "top_p=0.6"],
        &["`top_p` is given twice, by --top-p and by --set"],
    );
    with(&["--temp", "1", "--set", "sampler_order=up"], &["`sampler_order`", "llama_cpp"]);
    with(&["--temp", "1", "--mirostat", "3"], &["`mirostat`", "0, 1 or 2"]);
    with(&["--dry-multiplier", "-1"], &["`dry_multiplier`"]);
    // No number is dropped because JSON cannot spell it.
    with(&["--temp", "1", "--top-p", "nan"], &["--top-p", "finite"]);
    with(&["--frequency-penalty", "inf"], &["--frequency-penalty", "finite"]);
    with(&["--max-time", "nan"], &["--max-time", "finite"]);
    with(&["--guidance-scale", "nan"], &["--guidance-scale", "finite"]);
    with(&["--set", "logit_bias={\"9999999\": 1}"], &["9999999"]);
    with(&["--set", "logit_bias={\"a\": 1}"], &["`logit_bias`", "token ids as keys"]);
}

/// Absurd settings and files: a text, or one sentence of at most 400 characters.
#[test]
fn absurd_settings_are_answered_or_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(100_000);
    let synth = |fields: &str| format!("watermarking_config={{{fields}}}");
    let layers = format!("dola_layers={:?}", vec![2; 20_000]);
    let words = format!("bad_words_ids={:?}", vec![[5, 6]; 5_000]);
    let model =
        write(folder.path(), "model.json", format!("{{\"cache_implementation\": \"{long}\"}}"));
    let ids = vec!["5"; 1100].join(",");
    let hidden = vec!["0"; 1000].join(",");
    for (status, args) in [
        (0, vec!["--set", &layers]),
        (0, vec!["--set", &words]),
        (0, vec!["--do-sample", "--set", &synth("\"ngram_len\": 2147483648, \"keys\": [1, 2]")]),
        (
            2,
            vec![
                "--do-sample",
                "--set",
                &synth(&format!("\"ngram_len\": 5, \"keys\": {:?}", vec![1; 2000])),
            ],
        ),
        (
            2,
            vec![
                "--do-sample",
                "--set",
                &synth("\"ngram_len\": 5, \"keys\": [1], \"sampling_table_size\": 1099511627776"),
            ],
        ),
        (2, vec!["--generation-config", &model]),
        (2, vec!["--set", &long]),
        (2, vec!["--set", "num_beams=70000"]),
        (2, vec!["--set", "max_new_tokens=99999999999999999999"]),
        (2, vec!["--set", "grammar=\"start: (\\\"a\\\"?)~200000\""]),
        (2, vec!["--hidden-states", &hidden, "--format", "json"]),
        (
            0,
            vec![
                "--set",
                "no_repeat_ngram_size=1099511627776",
                "--set",
                "penalty_last_n=1099511627776",
            ],
        ),
        (0, vec!["--prompt-lookup", "18446744073709551615"]),
        // Beyond the model's context HF answers too.
        (0, vec!["--prompt-ids", &ids]),
    ] {
        let start: &[&str] = if args[0] == "--prompt-ids" { &[] } else { &["--prompt", "Hi"] };
        let run = mlxgk_with(&[&["generate", "--max-tokens", "2"], start, &args].concat(), b"");
        let shown: String = format!("{args:?}").chars().take(80).collect();
        assert_eq!(run.status, Some(status), "{shown}: {}", run.stderr);
        assert!(run.stderr.lines().all(|it| it.chars().count() <= 400), "{shown}: {}", run.stderr);
        assert_eq!(run.stderr.starts_with("error: "), status != 0, "{shown}: {}", run.stderr);
    }
}
