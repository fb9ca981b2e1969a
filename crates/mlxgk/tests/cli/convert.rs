//! Models converted on the command line, and run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::shared::{Run, bundled, fixture, mlxgk, write};

/// Converts a model into a folder of `work`.
fn convert(model: &Path, work: &TempDir, name: &str, flags: &[&str]) -> (String, Run) {
    let out = work.path().join(name).to_str().unwrap().to_owned();
    let base = ["convert", model.to_str().unwrap(), "--out", &out, "--format", "json"];
    let run = mlxgk(&[&base[..], flags].concat());
    (out, run)
}

fn document(run: &Run) -> Value {
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

/// The log-probabilities of a text of ids.
fn logprobs(model: &str) -> Vec<f64> {
    logprobs_of(model, "5,17,30,2,91,44,8")
}

fn logprobs_of(model: &str, ids: &str) -> Vec<f64> {
    let run = mlxgk(&["score", "-m", model, "--prompt-ids", ids, "--format", "json"]);
    serde_json::from_value(document(&run)["logprobs"].clone()).unwrap()
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn a_model_is_stacked_and_back_without_a_change_of_its_scores() {
    let work = tempfile::tempdir().unwrap();
    let source = fixture("qwen3-moe");
    let scores = logprobs(source.to_str().unwrap());
    let (mlx, run) = convert(&source, &work, "mlx", &[]);
    assert_eq!(document(&run)["quantized_modules"], 0);
    let (hf, run) = convert(Path::new(&mlx), &work, "hf", &["--to", "hf"]);
    document(&run);
    assert_eq!(logprobs(&mlx), scores);
    assert_eq!(logprobs(&hf), scores);
}

#[test]
fn each_family_runs_in_mlx_layout() {
    for name in [
        "falcon-h1",
        "gemma3n",
        "kimi-linear",
        "laguna",
        "lfm3",
        "llama4",
        "mellum",
        "muse-glimmer",
        "nemotron-h",
    ] {
        let work = tempfile::tempdir().unwrap();
        // Of their 67 tokens.
        let logprobs = |model: &str| logprobs_of(model, "5,17,30,2,61,44,8");
        let source = fixture(name);
        let (mlx, run) = convert(&source, &work, "mlx", &["--dtype", "float32"]);
        document(&run);
        let stacked = far(&logprobs(&mlx), &logprobs(source.to_str().unwrap()));
        // Falcon's factors are in the matrices, kimi's keys and values are taken apart, and the experts of
        // others are other matrices: Mellum's sums were 1.002e-5 apart on one processor, kimi's 1.34e-5.
        let most = match name {
            "kimi-linear" => 2e-5,
            "mellum" => 1.01e-5,
            _ => 1e-5,
        };
        assert!(stacked < most, "{name}, stacked: {stacked}");
        let flags = ["--bits", "8", "--group-size", "32", "--dtype", "float32"];
        let (packed, run) = convert(&source, &work, "packed", &flags);
        document(&run);
        let (plain, run) = convert(Path::new(&packed), &work, "plain", &["--dequantize"]);
        document(&run);
        let far = far(&logprobs(&packed), &logprobs(&plain));
        // Gemma 3n's low-rank paths amplify the rounding of sums.
        let most = if name == "gemma3n" { 5e-5 } else { 1e-5 };
        assert!(far < most, "{name}, packed: {far}");
    }
}

#[test]
fn what_other_programs_quantized_runs_as_it_did() {
    // GPTQ's biases, which it does not have, are written in float16: up to 15 steps of 4 bits, or 255 of 8,
    // rounded by a part in 2,048. All else is exact.
    for (name, dtype, most) in [
        ("llama-awq", Some("float16"), 0.0),
        ("llama-compressed", None, 0.0),
        ("llama-fp8", None, 0.0),
        ("llama-gptq", Some("float16"), 8e-3),
        ("llama-gptq-8bit", Some("float16"), 4e-2),
        ("llama-modelopt-fp8", None, 0.0),
        ("llama-modelopt-nvfp4", None, 0.0),
    ] {
        let work = tempfile::tempdir().unwrap();
        let source = fixture(name);
        let flags: Vec<&str> = dtype.into_iter().flat_map(|it| ["--dtype", it]).collect();
        let (out, run) = convert(&source, &work, "mlx", &flags);
        document(&run);
        let far = far(&logprobs(&out), &logprobs(source.to_str().unwrap()));
        assert!(far <= most, "{name}: {far}");
    }
}

#[test]
fn a_quantized_model_runs_and_scores_as_its_dequantized_copy() {
    let work = tempfile::tempdir().unwrap();
    let source = fixture("llama");
    let (out, run) = convert(&source, &work, "q", &["--bits", "8", "--group-size", "32"]);
    let json = document(&run);
    assert_eq!(json["was_there"], false);
    // Scales and biases in float32 and rows of 48 that stay dense are more than the 8 bits.
    let [bits, bytes, parameters] =
        ["bits_per_weight", "bytes", "parameters"].map(|it| json[it].as_f64().unwrap());
    assert!(bits == bytes * 8.0 / parameters && (10.0..16.0).contains(&bits), "{json}");
    let (plain, run) = convert(Path::new(&out), &work, "plain", &["--dequantize"]);
    document(&run);
    let (packed, plain) = (logprobs(&out), logprobs(&plain));
    assert!(far(&packed, &plain) < 1e-4);
    assert!(far(&packed, &logprobs(source.to_str().unwrap())) < 0.5);

    let source = fixture("qwen3-moe");
    for (name, flags) in [
        ("mixed", &["--recipe", "mixed_3_6", "--group-size", "32", "--rule", "lm_head=8,32"][..]),
        ("mxfp4", &["--mode", "mxfp4"]),
        ("mxfp8", &["--mode", "mxfp8"]),
        ("nvfp4", &["--mode", "nvfp4", "--rule", "*embed_tokens=4,32"]),
    ] {
        // In a narrower dtype the dequantized numbers would be rounded, where the product's are not.
        let flags = [flags, &["--dtype", "float32"]].concat();
        let (out, run) = convert(&source, &work, name, &flags);
        document(&run);
        let back = format!("{name}-plain");
        let (plain, run) = convert(Path::new(&out), &work, &back, &["--dequantize"]);
        document(&run);
        assert!(far(&logprobs(&out), &logprobs(&plain)) < 1e-4, "{name}");
    }
}

#[test]
fn a_conversion_is_done_once_and_evaluated() {
    let (work, source) = (tempfile::tempdir().unwrap(), bundled());
    let rules = write(work.path(), "rules.txt", "# the head\n*embed_tokens=8\n");
    let text = write(work.path(), "text.txt", "Once upon a time there was a small fox. It ran.");
    let flags = ["--bits", "6", "--rules-file", &rules, "--evaluate", &text];
    let (out, run) = convert(source.path(), &work, "q", &flags);
    let json = document(&run);
    let evaluation = &json["evaluation"];
    let number = |it: &Value| it.as_f64().unwrap();
    let [before, after] = ["before", "after"].map(|it| number(&evaluation["perplexity"][it]));
    assert!(before > 1.0 && (before - after).abs() < 0.2 * before, "{evaluation}");
    assert!((1e-9..0.2).contains(&number(&evaluation["kl"])), "{evaluation}");
    assert!(number(&evaluation["tokens"]) > 5.0);
    let (_, again) = convert(source.path(), &work, "q", &flags[..4]);
    assert_eq!(document(&again)["was_there"], true);
    // Tokenizer and template went along.
    let run = mlxgk(&["generate", "-m", &out, "Tell me a story.", "-n", "4"]);
    assert_eq!(run.status, Some(0), "{}", run.stderr);

    let run = mlxgk(&["convert", source.path().to_str().unwrap(), "--out", &out]);
    assert_eq!(run.status, Some(2));
    assert!(run.stderr.contains("exists, and is not what this conversion makes"), "{}", run.stderr);
    let again = ["convert", source.path().to_str().unwrap(), "--out", &out];
    let run = mlxgk(&[&again[..], &flags[..4]].concat());
    assert!(run.stdout.starts_with("was there        "), "{}", run.stdout);
    let (_, run) = convert(source.path(), &work, "same", &flags[..2]);
    document(&run);
    let text = mlxgk(&["convert", source.path().to_str().unwrap(), "-o", &out, "--bits", "6"]);
    assert_eq!(text.status, Some(2), "{}", text.stdout);
    assert!(fs::metadata(work.path().join("same/tokenizer.json")).is_ok());
}

/// A recorded model of each family, copied with one of its tensors under a name that no graph asks for.
/// Returns the tensor's own name.
fn with_one_renamed(model: &Path, work: &Path) -> String {
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, work.join(path.file_name().unwrap())).unwrap();
    }
    let _ = fs::remove_file(work.join("model.safetensors.index.json"));
    let weights = |it: &PathBuf| it.extension().is_some_and(|it| it == "safetensors");
    let files = fs::read_dir(work).unwrap().map(|it| it.unwrap().path());
    let path = files.filter(weights).min().unwrap();
    let bytes = fs::read(&path).unwrap();
    let begin = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> =
        serde_json::from_slice(&bytes[8..begin]).unwrap();
    let names: Vec<String> = header.keys().filter(|it| it.contains(".layers.")).cloned().collect();
    let name = names[names.len() / 2].clone();
    let about = header.remove(&name).unwrap();
    header.insert(format!("{name}_2"), about);
    let text = Value::Object(header).to_string().into_bytes();
    let all = [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[begin..]].concat();
    fs::write(path, all).unwrap();
    name
}

/// Which tensors there are is asked of the loader, whose own test tries every tensor of every model
/// (`mlx-models/tests/damaged.rs`).
#[test]
fn a_folder_that_lacks_a_tensor_is_refused_by_every_family() {
    let models = fixture("llama").parent().unwrap().to_owned();
    let mut folders: Vec<PathBuf> =
        fs::read_dir(models).unwrap().map(|it| it.unwrap().path()).collect();
    folders.retain(|it| it.is_dir());
    folders.sort();
    let mut families = BTreeSet::new();
    for model in folders {
        let config = fs::read(model.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        if !families.insert(config["model_type"].as_str().unwrap().to_owned()) {
            continue;
        }
        let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tensor = with_one_renamed(&model, source.path());
        let (out, run) = convert(source.path(), &work, "out", &["--dtype", "float32"]);
        let about = format!("{}: {}", model.display(), run.stderr);
        assert_eq!(run.status, Some(1), "{about}");
        assert!(run.stderr.contains(&format!("`{tensor}` is missing")), "{about}");
        assert!(!Path::new(&out).exists(), "{about}");
    }
    assert!(families.len() > 40, "{families:?}");
}

#[test]
fn what_an_evaluation_takes_is_looked_for_first() {
    let (work, source) = (tempfile::tempdir().unwrap(), bundled());
    let empty = write(work.path(), "empty.txt", "");
    let text = write(work.path(), "text.txt", "Once upon a time there was a small fox.");
    for (model, text, status, words) in [
        (source.path(), &empty, 2, "the text has fewer than two tokens"),
        (&*fixture("llama"), &text, 1, "has no tokenizer.json, by which the text is read"),
        (source.path(), &"no/such/file".to_owned(), 2, "cannot read no/such/file"),
    ] {
        let flags = ["--bits", "4", "--evaluate", text];
        let (out, run) = convert(model, &work, "out", &flags);
        assert_eq!(run.status, Some(status), "{}", run.stderr);
        assert!(run.stderr.contains(words), "{}", run.stderr);
        assert!(!Path::new(&out).exists(), "{words}");
    }
    // With few bits a model is further away than with many.
    let [two, mixed, six] = [&["--bits", "2"][..], &["--recipe", "mixed_2_6"], &["--bits", "6"]]
        .map(|flags| {
            let name = flags.join("");
            let (_, run) =
                convert(source.path(), &work, &name, &[flags, &["--evaluate", &text]].concat());
            document(&run)["evaluation"]["kl"].as_f64().unwrap()
        });
    assert!(two > six && mixed > six && six > 0.0, "{two} {mixed} {six}");
}

#[test]
fn a_rule_for_the_head_of_a_tied_model_says_where_it_is() {
    let (work, source) = (tempfile::tempdir().unwrap(), bundled());
    let flags = ["--bits", "4", "--rule", "lm_head=dense"];
    let (_, run) = convert(source.path(), &work, "out", &flags);
    assert_eq!(run.status, Some(2));
    let words = "matches no module of the model; its head is the token table, model.embed_tokens";
    assert!(run.stderr.contains(words), "{}", run.stderr);
}

#[test]
fn flags_that_contradict_are_refused() {
    let work = tempfile::tempdir().unwrap();
    for (flags, words) in [
        (&["--bits", "7"][..], "affine quantization has no 7 bits"),
        (&["--mode", "mxfp4", "--bits", "8"], "mxfp4 has 4 bits in groups of 32"),
        (&["--mode", "fp4"], "invalid value 'fp4' for '--mode <MODE>'"),
        (&["--recipe", "mixed_3_6", "--bits", "4"], "cannot be used with"),
        (&["--dequantize", "--rule", "*=4"], "cannot be used with"),
        (&["--dtype", "float8"], "expected one of float32, float16, bfloat16"),
        (&["--rule", "lm_head"], "is not GLOB=BITS"),
        (&["--dequantize"], "is not quantized"),
        (&["--bits", "4", "--to", "hf"], "transformers does not read"),
        (&["--rules-file", "no/such/file"], "cannot read no/such/file"),
    ] {
        let (out, run) = convert(&fixture("llama"), &work, "out", flags);
        assert_eq!(run.status, Some(2), "{flags:?} {}", run.stderr);
        assert!(run.stderr.contains(words), "{flags:?} {}", run.stderr);
        assert!(!Path::new(&out).exists());
    }
    let run = mlxgk(&["convert", "no/such/folder/", "--out", "x"]);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    let run = mlxgk(&["convert", "org/other", "--out", "x", "--offline"]);
    assert!(run.stderr.contains("org/other"), "{}", run.stderr);
}

/// A header may declare what no disk holds; it is refused before a number is read.
#[cfg(unix)]
#[test]
fn tensors_that_the_config_does_not_call_for_are_refused_at_once() {
    for (name, words) in [
        ("model.embed_tokens.weight", "has shape [1048576, 524288], but config.json makes it"),
        ("model.layers.0.mlp.more.weight", "no tensor `model.layers.0.mlp.more.weight`"),
    ] {
        let source = crate::shared::copy("llama");
        let path = source.path().join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        let length = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let mut header: serde_json::Map<String, Value> =
            serde_json::from_slice(&whole[8..length]).unwrap();
        header.remove("__metadata__");
        let terabyte = serde_json::json!({"dtype": "BF16", "shape": [1 << 20, 1 << 19]});
        header.insert(name.to_owned(), terabyte);
        let mut end = 0;
        for (name, tensor) in &mut header {
            let shape: Vec<u64> = serde_json::from_value(tensor["shape"].clone()).unwrap();
            let begin = end;
            end += shape.iter().product::<u64>() * if tensor["dtype"] == "F32" { 4 } else { 2 };
            tensor["data_offsets"] = serde_json::json!([begin, end]);
            assert!(["F32", "BF16"].iter().any(|it| tensor["dtype"] == *it), "{name}");
        }
        let header = Value::Object(header).to_string();
        let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        fs::write(&path, &start).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(start.len() as u64 + end).unwrap();
        for flags in [&[][..], &["--bits", "4"], &["--to", "hf"]] {
            let work = tempfile::tempdir().unwrap();
            let (out, run) = convert(source.path(), &work, "out", flags);
            assert_eq!(run.status, Some(1), "{}", run.stderr);
            assert!(
                run.stderr.contains(words) && run.stderr.lines().count() == 1,
                "{}",
                run.stderr
            );
            assert!(!Path::new(&out).exists());
        }
    }
}

/// Reading a pipe would wait for a writer, and a device might never end.
#[cfg(unix)]
#[test]
fn files_of_a_folder_that_are_none() {
    for name in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"] {
        for device in [None, Some("/dev/zero")] {
            let source = bundled();
            let path = source.path().join(name);
            fs::remove_file(&path).unwrap();
            match device {
                Some(device) => std::os::unix::fs::symlink(device, &path).unwrap(),
                None => {
                    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
                    assert!(made.success());
                }
            }
            let work = tempfile::tempdir().unwrap();
            let (_, run) = convert(source.path(), &work, "out", &[]);
            assert_eq!(run.status, Some(1), "{}", run.stderr);
            let words = [name, "a device or a pipe, not a file"];
            assert!(words.iter().all(|it| run.stderr.contains(it)), "{}", run.stderr);
            assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        }
    }
}
