//! Models converted on the command line, and run.

use std::{fs, path::Path};

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
        let far = far(&logprobs(&mlx), &logprobs(source.to_str().unwrap()));
        // Falcon's factors are in the matrices, and kimi's keys and values are taken apart.
        assert!(far < 1e-5, "{name}: {far}");
        let flags = ["--bits", "8", "--group-size", "32", "--dtype", "float32"];
        let (packed, run) = convert(&source, &work, "packed", &flags);
        document(&run);
        let (plain, run) = convert(Path::new(&packed), &work, "plain", &["--dequantize"]);
        document(&run);
        let far = self::far(&logprobs(&packed), &logprobs(&plain));
        // Gemma 3n's low-rank paths amplify the rounding of sums.
        let most = if name == "gemma3n" { 5e-5 } else { 1e-5 };
        assert!(far < most, "{name}: {far}");
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
    let (_, run) = convert(source.path(), &work, "same", &flags[..2]);
    document(&run);
    let text = mlxgk(&["convert", source.path().to_str().unwrap(), "-o", &out, "--bits", "6"]);
    assert_eq!(text.status, Some(2), "{}", text.stdout);
    assert!(fs::metadata(work.path().join("same/tokenizer.json")).is_ok());
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
