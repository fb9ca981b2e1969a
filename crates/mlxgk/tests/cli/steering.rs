//! Steering flags, and the commands around steering files.

use std::path::Path;

use mlx_genkit::{
    HookPoint,
    steering::{SteeringVectors, extract::LayerReport},
};
use serde_json::Value;

use crate::shared::{Run, fixture, mlxgk, write};

/// A steering file for a model of the given width: a vector of ones, tilted, at every place.
pub(crate) fn vectors(folder: &Path, name: &str, width: usize, places: &[HookPoint]) -> String {
    let vector: Vec<f32> = (0..width).map(|it| 0.5 + (it % 7) as f32 / 7.0).collect();
    let path = folder.join(name);
    let places = places.iter().map(|&it| (it, vector.clone()));
    SteeringVectors::new(places).unwrap().save(&path).unwrap();
    path.to_str().unwrap().to_owned()
}

fn tokens(extra: &[&str]) -> Vec<Value> {
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let args = [
        "generate",
        "--model",
        model,
        "--prompt-ids",
        "5,17,30",
        "--max-tokens",
        "12",
        "--format",
        "json",
    ];
    let run = mlxgk(&[&args[..], extra].concat());
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    document["sequences"][0]["tokens"].as_array().unwrap().clone()
}

#[test]
fn flags_steer_and_alpha_0_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<_> = (0..3).map(HookPoint::ResidPost).collect();
    let file = vectors(folder.path(), "joy.safetensors", 32, &all);
    let norm = vectors(folder.path(), "norm.safetensors", 32, &[HookPoint::FinalNorm]);
    let plain = tokens(&[]);
    let dose = |alpha: &str| format!("{file}:{alpha}");
    assert_eq!(tokens(&["--steer", &dose("0")]), plain);
    let steered = tokens(&["--steer", &dose("3")]);
    assert_ne!(steered, plain);
    // Twice a half is a whole.
    assert_eq!(tokens(&["--steer", &dose("1.5"), "--steer", &dose("1.5")]), steered);
    assert_eq!(tokens(&["--steer", &dose("3"), "--steer-layers", "0-2"]), steered);
    assert_eq!(tokens(&["--steer", &dose("3"), "--steer-positions", "all"]), steered);
    for other in [
        ["--steer-layers", "1"],
        ["--steer-op", "clamp"],
        ["--steer-positions", "generation"],
        ["--steer-schedule", "ramp:0:6"],
        ["--steer-kl", "0.01"],
    ] {
        assert_ne!(tokens(&[&["--steer", &dose("3")], &other[..]].concat()), steered, "{other:?}");
    }
    // A budget that nothing exceeds changes nothing, and one that allows nothing steers nothing.
    assert_eq!(tokens(&["--steer", &dose("3"), "--steer-kl", "1000"]), steered);
    assert_eq!(tokens(&["--steer", &dose("3"), "--steer-kl", "1e-12"]), plain);
    // Steering the logits is adding after the final norm.
    let logits = tokens(&["--steer-logits", &format!("{norm}:2")]);
    assert_eq!(tokens(&["--steer", &format!("{norm}:2")]), logits);
    assert_ne!(logits, plain);
}

#[test]
fn scores_are_steered_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = vectors(folder.path(), "joy.safetensors", 32, &[HookPoint::ResidPost(1)]);
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let sum = |extra: &[&str]| {
        let args = ["score", "--model", model, "--prompt-ids", "5,17,30,2", "--format", "json"];
        let run = mlxgk(&[&args[..], extra].concat());
        let document: Value = serde_json::from_str(&run.stdout).unwrap();
        document["sum"].as_f64().unwrap()
    };
    assert_eq!(sum(&[]), sum(&["--steer", &format!("{file}:0")]));
    assert!((sum(&[]) - sum(&["--steer", &file])).abs() > 1e-3);
}

#[test]
fn vectors_are_extracted_shown_and_converted() {
    let folder = tempfile::tempdir().unwrap();
    let pairs: String = ["harbour", "rain", "fox", "library", "bread", "garden"]
        .iter()
        .map(|it| {
            format!(
                "{{\"prompt\": \"Tell me about the {it}.\", \"positive\": \"Oh, the {it} is wonderful!\", \
                 \"negative\": \"Alas, the {it} is dreary.\"}}\n"
            )
        })
        .collect();
    let pairs = write(folder.path(), "pairs.jsonl", pairs);
    let out = folder.path().join("joy.safetensors");
    let out = out.to_str().unwrap();
    for method in ["mean-diff", "pca-pair-centered", "logistic-probe"] {
        let run = mlxgk(&[
            "steer",
            "extract",
            "--pairs",
            &pairs,
            "--out",
            out,
            "--method",
            method,
            "--held-out",
            "0.34",
        ]);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        assert!(
            run.stdout.contains("AUROC") && run.stdout.contains("resid_post.4"),
            "{}",
            run.stdout
        );
        let vectors = SteeringVectors::load(Path::new(out)).unwrap();
        assert_eq!(vectors.layers(), [0, 1, 2, 3, 4]);
        assert_eq!(vectors.metadata()["method"], method);
        assert_eq!(vectors.metadata()["held_out"], "2");
        // Words tell these pairs apart; any layer's direction does.
        assert!(LayerReport::of(&vectors).iter().all(|it| it.auroc == Some(1.0)), "{method}");
    }
    let gguf = folder.path().join("joy.gguf");
    let gguf = gguf.to_str().unwrap();
    let run = mlxgk(&["steer", "export", out, "--out", gguf]);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("no place for resid_post.0"), "{}", run.stderr);
    let back = folder.path().join("back.safetensors");
    let back = back.to_str().unwrap();
    assert_eq!(mlxgk(&["steer", "import", gguf, "--out", back]).status, Some(0));
    let run = mlxgk(&["steer", "show", back, "--format", "json"]);
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(document["hidden"], 256);
    assert_eq!(document["vectors"][0]["name"], "resid_post.1");
}

#[test]
fn validation_prints_a_table_or_a_document() {
    let folder = tempfile::tempdir().unwrap();
    let file = vectors(folder.path(), "joy.safetensors", 256, &[HookPoint::ResidPost(2)]);
    let prompts = write(folder.path(), "prompts.json", r#"["Tell me about rain.", "And snow?"]"#);
    let page = folder.path().join("report.html");
    let args = [
        "validate",
        "--steer",
        &file,
        "--alphas",
        "0.5",
        "--prompts-file",
        &prompts,
        "--max-tokens",
        "8",
        "--html",
        page.to_str().unwrap(),
    ];
    let run = mlxgk(&args);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert_eq!(run.stdout.lines().count(), 5, "{}", run.stdout);
    assert!(std::fs::read_to_string(&page).unwrap().contains("<polyline"));
    let run = mlxgk(&[&args[..], &["--format", "json", "--no-controls"]].concat());
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(document["cells"].as_array().unwrap().len(), 2);
    for cell in document["cells"].as_array().unwrap() {
        assert_eq!(cell["same"], 1.0);
    }
    assert!(document["cells"][1]["kl"].as_f64().unwrap() > 0.0);
}

#[track_caller]
fn refused(run: &Run, status: i32, words: &[&str]) {
    assert_eq!(run.status, Some(status), "{}{}", run.stdout, run.stderr);
    assert_eq!(run.stdout, "");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is missing: {}", run.stderr);
    }
}

#[test]
fn what_is_wrong_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let good = vectors(path, "good.safetensors", 32, &[HookPoint::ResidPost(1)]);
    let narrow = vectors(path, "narrow.safetensors", 7, &[HookPoint::ResidPost(1)]);
    let deep = vectors(path, "deep.safetensors", 32, &[HookPoint::ResidPost(9)]);
    let junk = write(path, "junk.safetensors", "junk");
    let gguf = write(path, "v.gguf", [&b"GGUF\x03"[..], &[0; 200]].concat());
    let svec = write(path, "v.svec", "{\"model_type\": \"llama\"}");
    let header = br#"{"__metadata__":{"format":"mlxgk-steering","version":"1"},"resid_post.1":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    let values = [1.0, f32::NAN].map(f32::to_le_bytes).concat();
    let nan = write(path, "nan.safetensors", [&length[..], header, &values].concat());
    let generate = |extra: &[&str]| {
        mlxgk(
            &[&["generate", "--model", model, "--prompt-ids", "5", "--max-tokens", "2"], extra]
                .concat(),
        )
    };
    for (extra, status, words) in [
        (vec!["--steer", &narrow], 2, vec!["narrow.safetensors", "7 values", "width is 32"]),
        (vec!["--steer", &deep], 2, vec!["deep.safetensors", "resid_post.9", "layers 0 to 2"]),
        (vec!["--steer", &junk], 2, vec!["junk.safetensors", "not a safetensors file"]),
        (vec!["--steer", &gguf], 2, vec!["v.gguf: a GGUF file", "`mlxgk steer import` reads it"]),
        (vec!["--steer", &svec], 2, vec!["v.svec: a svec file", "`mlxgk steer import` reads it"]),
        (vec!["--steer", "nowhere.safetensors:2"], 2, vec!["cannot read nowhere.safetensors"]),
        (vec!["--steer", &good, "--steer-layers", "7"], 2, vec!["layer 7 is out of range"]),
        (vec!["--steer", &good, "--steer-layers", "0"], 2, vec!["no vector for layer 0"]),
        (
            vec!["--steer", &good, "--steer-op", "shove"],
            2,
            vec!["unknown operation \"shove\"", "add-unit"],
        ),
        (vec!["--steer", &good, "--steer-positions", "prompt[3..3]"], 2, vec!["empty"]),
        (vec!["--steer", &good, "--steer-positions", "somewhere"], 2, vec!["unknown position"]),
        (
            vec!["--steer", &good, "--steer-schedule", "later"],
            2,
            vec!["unknown schedule \"later\""],
        ),
        (
            vec!["--steer", &good, "--steer-schedule", "warmup:-3"],
            2,
            vec!["unknown schedule \"warmup:-3\""],
        ),
        (vec!["--steer", &good, "--steer-schedule", "pulse:0:0.5"], 2, vec!["at least 1 step"]),
        (vec!["--steer", &good, "--steer-schedule", "decay:nan"], 2, vec!["finite tau"]),
        (vec!["--steer", &good, "--steer-positions", "tokens[]"], 2, vec!["unknown position"]),
        (vec!["--steer", &good, "--steer-positions", ""], 2, vec!["unknown position"]),
        (vec!["--steer", &good, "--steer-positions", "all,-all"], 2, vec!["empty"]),
        (vec!["--steer", &good, "--steer-layers", "2-1"], 2, vec!["unknown layers \"2-1\""]),
        (vec!["--steer", &format!("{good}:nan")], 2, vec!["ALPHA must be finite"]),
        (vec!["--steer", &format!("{good}:much")], 2, vec!["ALPHA must be a number"]),
        // A typing error in the name does not change how the rest is read.
        (vec!["--steer", "nowhere.safetensors:much"], 2, vec!["ALPHA must be a number"]),
        (vec!["--steer", &nan], 2, vec!["nan.safetensors", "value 1 of resid_post.1 is NaN"]),
        (vec!["--steer", &good, "--steer-kl", "0"], 2, vec!["--steer-kl", "a number above 0"]),
        (vec!["--steer-kl", "0.1"], 2, vec!["--steer-kl needs --steer"]),
        (
            vec!["--steer", &good, "--steer-kl", "0.1", "--guidance-scale", "2"],
            2,
            vec!["a KL budget is not available together with --guidance-scale"],
        ),
        (vec!["--steer-logits", &narrow], 2, vec!["narrow.safetensors", "7 values"]),
        (vec!["--steer-schedule", "constant"], 2, vec!["--steer-schedule needs --steer"]),
        (vec!["--steer-op", "add"], 2, vec!["--steer"]),
    ] {
        refused(&generate(&extra), status, &words);
    }
    let positive = write(path, "glad.txt", "joy\nmirth\nglee\n");
    let negative = write(path, "sad.txt", "woe\nsorrow\n");
    let out = path.join("out.safetensors");
    let out = out.to_str().unwrap();
    let run = mlxgk(&[
        "steer",
        "extract",
        "--positive",
        &positive,
        "--negative",
        &negative,
        "--out",
        out,
    ]);
    refused(&run, 2, &["glad.txt has 3 texts", "sad.txt has 2"]);
    let pairs = write(path, "pairs.jsonl", "{\"positive\": \"joy\"}\n");
    let run = mlxgk(&["steer", "extract", "--pairs", &pairs, "--out", out]);
    refused(&run, 2, &["pairs.jsonl, line 1", "`negative` is missing"]);
    let run = mlxgk(&["steer", "import", &junk, "--from", "gguf", "--out", out]);
    refused(&run, 2, &["junk.safetensors", "not a GGUF file"]);
    let run = mlxgk(&["steer", "import", &junk, "--from", "gguff", "--out", out]);
    refused(&run, 2, &["unknown format \"gguff\""]);
    let nameless = write(path, "joy.bin", "junk");
    let run = mlxgk(&["steer", "import", &nameless, "--out", out]);
    refused(&run, 2, &["cannot tell the format from the name", ".gguf"]);
    let run = mlxgk(&["steer", "export", &good, "--to", "pickle", "--out", out]);
    refused(&run, 2, &["unknown format \"pickle\""]);
    let run = mlxgk(&["steer", "show", &nan]);
    refused(&run, 2, &["nan.safetensors", "value 1 of resid_post.1 is NaN"]);
    let run = mlxgk(&[
        "score",
        "--model",
        model,
        "--prompt-ids",
        "5,6",
        "--steer",
        &good,
        "--steer-kl",
        "1",
    ]);
    refused(&run, 2, &["a given text is scored without one"]);
    refused(&mlxgk(&["validate"]), 2, &["nothing to validate"]);
    assert!(!Path::new(out).exists());
}
