//! `mlxgk train` and what is done with what it leaves. The guide's own commands are run by `pages.rs`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::shared::{fixture, mlxgk, write};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A voice is learned: the loss falls far below where it began, and the run leaves a plot of it.
#[test]
fn a_voice_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let row = |question: &str, answer: &str| {
        let messages = serde_json::json!({"messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": format!("Beep. {answer} Beep.")},
        ]});
        format!("{messages}\n")
    };
    let rows = [
        row("How is the weather?", "The weather is mild."),
        row("Tell me about bread.", "Bread is warm."),
        row("Tell me about the market.", "The market is loud."),
        row("What is a lamp?", "A lamp is a light."),
    ];
    let data = write(folder.path(), "robot.jsonl", rows.concat());
    let out = text(&folder.path().join("robot"));
    let args = ["--steps", "15", "--batch-size", "4", "--lr", "1e-2", "--rank", "4"];
    let found = mlxgk(&[&["train", "--data", &data, "--out", &out][..], &args].concat());
    assert_eq!(found.status, Some(0), "{}", found.stderr);
    let metrics = fs::read_to_string(folder.path().join("robot/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|it| serde_json::from_str::<Value>(it).unwrap()["loss"].as_f64())
        .collect();
    assert!(losses[losses.len() - 1] < losses[0] / 2.0, "{losses:?}");
    let plot = fs::read_to_string(folder.path().join("robot/loss.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("polyline"));
}

const DATA: &str = "{\"prompt\": \"one\", \"completion\": \" two three four\"}\n\
                    {\"text\": \"The harbour is quiet today.\"}\n\
                    {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ahoy!\"}]}\n";

/// A run that was stopped half-way and continued is the run that was not.
#[test]
fn a_run_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.jsonl", DATA);
    let common = ["train", "--data", &data, "--rank", "2", "--layers", "4", "--batch-size", "2"];
    let at = |name: &str| text(&folder.path().join(name));
    let train = |out: &str, rest: &[&str]| {
        let out = at(out);
        let found = mlxgk(&[&common[..], &["--out", &out, "--format", "json"], rest].concat());
        assert_eq!(found.status, Some(0), "{}", found.stderr);
        serde_json::from_str::<Value>(&found.stdout).unwrap()
    };
    let steps = ["--steps", "6", "--save-every", "2"];
    let whole = train("whole", &steps);
    assert_eq!(whole["steps"], 6);
    // Another is killed once it has written a checkpoint, wherever it then is.
    let out = at("half");
    let args = [&common[..], &["--out", &out], &steps].concat();
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_mlxgk")).args(args).stdout(Stdio::null()).spawn().unwrap();
    let checkpoint = folder.path().join("half/checkpoint.safetensors");
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let resumed = train("half", &[&steps[..], &["--resume"]].concat());
    assert_eq!(resumed["steps"], 6);
    let weights = |name: &str| fs::read(folder.path().join(name).join("adapter_model.safetensors"));
    assert!(weights("whole").unwrap() == weights("half").unwrap());
    let losses = |name: &str| -> Vec<Value> {
        let lines = fs::read_to_string(folder.path().join(name).join("metrics.jsonl")).unwrap();
        lines.lines().map(|it| serde_json::from_str::<Value>(it).unwrap()["loss"].clone()).collect()
    };
    assert_eq!(losses("whole"), losses("half"));

    let refused = |rest: &[&str]| {
        let found = mlxgk(&[&common[..], rest].concat());
        assert_eq!(found.status, Some(2), "{}", found.stderr);
        found.stderr
    };
    let out = at("whole");
    assert!(refused(&["--out", &out]).contains("holds a run already"));
    let error = refused(&["--out", &out, "--steps", "6", "--seed", "5", "--resume"]);
    assert!(error.contains("other data or batches"), "{error}");
    assert!(refused(&["--out", &at("new"), "--patience", "2"]).contains("--valid"));
}

/// The step that a checkpoint stands at.
fn step_of(checkpoint: &Path) -> u64 {
    let bytes = fs::read(checkpoint).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let state = header["__metadata__"]["state"].as_str().unwrap();
    serde_json::from_str::<Value>(state).unwrap()["step"].as_u64().unwrap()
}

/// A run that is killed over and over while it writes checkpoints, and continued each time, loses no step
/// that was written, and ends as the run that was not.
#[test]
fn a_run_that_is_killed_again_and_again_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.jsonl", DATA);
    let kills = crate::killed::kills();
    let steps = (4 * kills).to_string();
    let common = [
        "train",
        "--data",
        &data,
        "--rank",
        "2",
        "--layers",
        "4",
        "--batch-size",
        "2",
        "--steps",
        &steps,
        "--save-every",
        "1",
    ];
    let out = |name: &str| text(&folder.path().join(name));
    let (whole, killed) = (out("whole"), out("killed"));
    let found = mlxgk(&[&common[..], &["--out", &whole]].concat());
    assert_eq!(found.status, Some(0), "{}", found.stderr);
    let checkpoint = folder.path().join("killed/checkpoint.safetensors");
    let mut reached = 0;
    for round in 0..kills {
        let mut args = [&common[..], &["--out", &killed]].concat();
        if checkpoint.exists() {
            args.push("--resume");
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_mlxgk"))
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stood = reached;
        while (!checkpoint.exists() || step_of(&checkpoint) == stood)
            && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        // At another place of a step and its checkpoint each time.
        std::thread::sleep(Duration::from_micros(u64::from(round * 37 % 61) * 700));
        let _ = child.kill();
        let ended = child.wait_with_output().unwrap();
        let ended = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.contains("error"), "{ended}");
        let step = step_of(&checkpoint);
        assert!(step > stood || step.to_string() == steps, "{stood}, then {step}");
        reached = step;
    }
    let found = mlxgk(&[&common[..], &["--out", &killed, "--resume"]].concat());
    assert_eq!(found.status, Some(0), "{}", found.stderr);
    let weights = |name: &str| fs::read(folder.path().join(name).join("adapter_model.safetensors"));
    assert!(weights("whole").unwrap() == weights("killed").unwrap());
}

/// Where the disk is full, the checkpoint before stays, and the run continues from it once there is room.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_the_checkpoint_before() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.jsonl", DATA);
    let out = text(&folder.path().join("out"));
    let args = [
        "train",
        "--data",
        &data,
        "--out",
        &out,
        "--rank",
        "2",
        "--layers",
        "4",
        "--batch-size",
        "2",
        "--steps",
        "12",
        "--save-every",
        "1",
    ];
    let checkpoint = folder.path().join("out/checkpoint.safetensors");
    // Until a run is killed before its end, which on a busy machine it may reach first.
    let mut runs = 0;
    while !checkpoint.exists() || step_of(&checkpoint) == 12 {
        runs += 1;
        assert!(runs < 20, "no run could be killed before its end");
        let _ = fs::remove_dir_all(&out);
        let mut child = Command::new(env!("CARGO_BIN_EXE_mlxgk"))
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        let ended = child.wait().unwrap();
        assert!(checkpoint.exists(), "no checkpoint: {ended}");
    }
    let (before, names) = (fs::read(&checkpoint).unwrap(), names(&checkpoint));
    // No file may grow beyond 16 KiB; what would, fails as a full disk fails.
    let limited = "trap '' XFSZ; ulimit -f 32; exec \"$@\"";
    let found = Command::new("sh")
        .args(["-c", limited, "sh", env!("CARGO_BIN_EXE_mlxgk")])
        .args(args)
        .arg("--resume")
        .output()
        .unwrap();
    let stderr = String::from_utf8(found.stderr).unwrap();
    assert_eq!(found.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("checkpoint.safetensors: cannot be written: "), "{stderr}");
    assert!(fs::read(&checkpoint).unwrap() == before, "the checkpoint has changed");
    assert_eq!(self::names(&checkpoint), names);
    let found = mlxgk(&[&args[..], &["--resume"]].concat());
    assert_eq!(found.status, Some(0), "{}", found.stderr);
    assert_eq!(step_of(&checkpoint), 12);
}

/// What lies beside a file, what a killed process may have been writing left out.
fn names(file: &Path) -> Vec<String> {
    let entries = fs::read_dir(file.parent().unwrap()).unwrap();
    let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|it| !it.starts_with(".mlxgk-")).collect();
    names.sort();
    names
}

/// Every optimizer lowers the loss, and says what it does not take.
#[test]
fn optimizers_are_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.jsonl", DATA);
    let train = |name: &str, rest: &[&str]| {
        let out = text(&folder.path().join(name));
        let common = [
            "train",
            "--data",
            &data,
            "--out",
            &out,
            "--batch-size",
            "3",
            "--schedule",
            "constant",
        ];
        let steps = ["--steps", "8", "--rank", "4", "--format", "json"];
        let chosen = ["--optimizer", name];
        mlxgk(&[&common[..], &steps, &chosen, rest].concat())
    };
    for (name, rest) in [
        ("adamw", &["--lr", "1e-2", "--lora-dropout", "0.1"][..]),
        ("sgd", &["--lr", "0.5", "--momentum", "0.9"]),
        ("adafactor", &["--lr", "0.1"]),
        ("torch-adafactor", &["--lr", "0.1"]),
        ("muon", &["--lr", "2e-2", "--momentum", "0.9"]),
    ] {
        let found = train(name, rest);
        assert_eq!(found.status, Some(0), "{name}: {}", found.stderr);
        let metrics = fs::read_to_string(folder.path().join(name).join("metrics.jsonl")).unwrap();
        let losses: Vec<f64> = metrics
            .lines()
            .filter_map(|it| serde_json::from_str::<Value>(it).unwrap()["loss"].as_f64())
            .collect();
        assert!(losses[losses.len() - 1] < losses[0], "{name}: {losses:?}");
    }
    let found = train("adafactor", &["--momentum", "0.5"]);
    assert_eq!(found.status, Some(2));
    assert!(found.stderr.contains("--momentum needs --optimizer sgd or muon"), "{}", found.stderr);
    let found = train("adamw", &["--method", "vector", "--lora-dropout", "0.1"]);
    assert_eq!(found.status, Some(2));
    assert!(
        found.stderr.contains("--lora-dropout needs --method lora or dora"),
        "{}",
        found.stderr
    );
}

#[test]
fn bad_data_is_named_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{{\"text\": \"{}\"}}\n", "word ".repeat(3000));
    for (data, what) in [
        ("", "has no row of data"),
        ("{\"text\": \"fine\"}\n\n{not json}\n", "data.jsonl:3: is not valid JSON"),
        ("[1]\n", "data.jsonl:1: is [1], expected an object"),
        ("{\"prompt\": \"no answer\"}\n", "data.jsonl:1: has no `completion`"),
        ("{\"prompt\": \"x\", \"completion\": \"\"}\n", "data.jsonl:1: `completion` is empty"),
        ("{\"text\": 5}\n", "data.jsonl:1: `text` is 5, expected a text"),
        ("{\"words\": \"x\"}\n", "data.jsonl:1: has the fields [\"words\"]"),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n",
            "no message of the assistant",
        ),
        ("{\"prompt\": \"x\", \"chosen\": \"y\"}\n", "data.jsonl:1: has no `rejected`"),
        (
            "{\"prompt\": \"x\", \"chosen\": \"y\", \"rejected\": \"z\"}\n{\"text\": \"x y\"}\n",
            "mixes preferences with other rows",
        ),
        (long.as_str(), "data.jsonl:1: has "),
    ] {
        let data = write(folder.path(), "data.jsonl", data);
        let out = text(&folder.path().join("out"));
        let found = mlxgk(&["train", "--data", &data, "--out", &out]);
        assert_eq!(found.status, Some(2), "{what}: {}", found.stderr);
        assert!(found.stderr.contains(what), "{what}: {}", found.stderr);
        assert!(!Path::new(&out).exists(), "{what}");
    }
}

#[test]
fn adapters_for_another_model_are_refused() {
    let adapter = text(&fixture("../training/peft-rslora"));
    let found = mlxgk(&["generate", "Hi", "--adapter", &adapter]);
    assert_eq!(found.status, Some(2), "{}", found.stderr);
    assert!(found.stderr.contains("is for another model: "), "{}", found.stderr);
    let prompt = text(&fixture("../training/peft-prompt"));
    let found = mlxgk(&["generate", "Hi", "--soft-prompt", &prompt]);
    assert_eq!(found.status, Some(2), "{}", found.stderr);
    assert!(found.stderr.contains("with hidden size 32, but this one has 256"), "{}", found.stderr);

    let model = text(&fixture("qwen3"));
    let merged = tempfile::tempdir().unwrap();
    let out = text(&merged.path().join("merged"));
    let found = mlxgk(&["adapter", "merge", "-m", &model, "--adapter", &adapter, "--out", &out]);
    assert_eq!(found.status, Some(0), "{}", found.stderr);
    let tokens = |args: &[&str]| {
        let ids = ["generate", "--prompt-ids", "5,17,42", "-n", "8", "--format", "json"];
        let found = mlxgk(&[&ids[..], args].concat());
        assert_eq!(found.status, Some(0), "{}", found.stderr);
        serde_json::from_str::<Value>(&found.stdout).unwrap()["sequences"][0]["tokens"].clone()
    };
    assert_ne!(tokens(&["-m", &model]), tokens(&["-m", &model, "--adapter", &adapter]));
    let refused = |status: i32, args: &[&str], what: &str| {
        let found = mlxgk(&[&["adapter", "merge"], args].concat());
        assert!(found.status == Some(status) && found.stderr.contains(what), "{}", found.stderr);
    };
    let new = text(&merged.path().join("new"));
    refused(2, &["--adapter", &adapter, "--out", &new], "is for another model");
    let line = ["-m", &model, "--adapter", &adapter, "--tokenizer", &model, "--out", &new];
    refused(2, &line, "--tokenizer is not available");
    refused(1, &["-m", &model, "--adapter", &adapter, "--out", &out], "is there already");
    refused(2, &["-m", &model, "--out", &new], "missing required argument: --adapter <DIR>");
    assert!(!Path::new(&new).exists());
}

/// A soft prompt in a batch: each row goes on as it does alone.
#[test]
fn a_soft_prompt_stands_before_each_row() {
    let folder = tempfile::tempdir().unwrap();
    let (model, soft) = (text(&fixture("gemma3")), text(&fixture("../training/peft-prompt")));
    let tokens = |prompts: &str, rest: &[&str]| -> Vec<Value> {
        let file = write(folder.path(), "prompts.json", prompts);
        let args = [
            "generate",
            "-m",
            &model,
            "--prompts-file",
            &file,
            "-n",
            "6",
            "--temp",
            "0",
            "--format",
            "json",
        ];
        let found = mlxgk(&[&args[..], rest].concat());
        assert_eq!(found.status, Some(0), "{}", found.stderr);
        let document: Value = serde_json::from_str(&found.stdout).unwrap();
        document["sequences"].as_array().unwrap().iter().map(|it| it["tokens"].clone()).collect()
    };
    let with = ["--soft-prompt", soft.as_str()];
    let both = tokens("[[5, 17, 42, 9], [30, 8]]", &with);
    assert_eq!(both[0], tokens("[[5, 17, 42, 9]]", &with)[0]);
    assert_eq!(both[1], tokens("[[30, 8]]", &with)[0]);
    assert_ne!(both, tokens("[[5, 17, 42, 9], [30, 8]]", &[]));
    let args = ["generate", "-m", &model, "--prompt-ids", "5,6", "--set", "use_cache=false"];
    let found = mlxgk(&[&args[..], &with].concat());
    assert_eq!(found.status, Some(2), "{}", found.stderr);
    assert!(
        found.stderr.contains("a soft prompt is not available together with"),
        "{}",
        found.stderr
    );
}

/// The bundled model's own weights, some of them, and the folder that they are written to.
#[test]
fn weights_are_trained_into_a_model_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.jsonl", DATA);
    let out = text(&folder.path().join("out"));
    let common = ["train", "--data", &data, "--method", "full", "--steps", "2", "--lr", "1e-2"];
    let found =
        mlxgk(&[&common[..], &["--out", &out, "--train", "layers.4", "--train", "norm"]].concat());
    assert_eq!(found.status, Some(0), "{}", found.stderr);
    let trained = format!("{out}/model");
    let score = |model: &[&str]| {
        let args = [&["score", "The harbour is quiet today.", "--format", "json"], model].concat();
        let found = mlxgk(&args);
        assert_eq!(found.status, Some(0), "{}", found.stderr);
        serde_json::from_str::<Value>(&found.stdout).unwrap()["sum"].as_f64().unwrap()
    };
    assert!(score(&["-m", &trained]) > score(&[]) + 1.0);

    let refused = |rest: &[&str], what: &str| {
        let args = [&["train", "--data", &data, "--out", "never"], rest].concat();
        let found = mlxgk(&args);
        assert_eq!(found.status, Some(2), "{args:?}: {}", found.stderr);
        assert!(found.stderr.contains(what), "{args:?}: {}", found.stderr);
    };
    refused(
        &["--rank", "4294967295"],
        "the rank 4294967295 is above both sides of `model.layers.0.",
    );
    refused(&["--freeze", "norm"], "--train and --freeze need --method full");
    refused(&["--method", "full", "--freeze", "."], "no parameter is left");
    refused(&["--method", "full", "--train", "("], "a parameter pattern");
    refused(&["--method", "full", "--adapter", "x"], "`mlxgk adapter merge`");
    refused(&["--adapter", "x", "--adapter", "y"], "not several");
    refused(&["--steer-kl", "1"], "--steer-kl is not supported in training");
}

/// Two adapters are the sum of what they change, and a model with both merged is the same.
#[test]
fn several_adapters_run_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.jsonl", DATA);
    let at = |name: &str| text(&folder.path().join(name));
    for (name, layers) in [("one", "1"), ("two", "4")] {
        let out = at(name);
        let found = mlxgk(&[
            "train", "--data", &data, "--out", &out, "--layers", layers, "--steps", "3", "--lr",
            "1e-2", "--rank", "2",
        ]);
        assert_eq!(found.status, Some(0), "{}", found.stderr);
    }
    let (one, two, merged) = (at("one"), at("two"), at("merged"));
    let both = ["--adapter", &one, "--adapter", &two];
    let found = mlxgk(&[&["adapter", "merge", "--out", &merged][..], &both].concat());
    assert_eq!(found.status, Some(0), "{}", found.stderr);
    let score = |rest: &[&str]| {
        let args = [&["score", "The harbour is quiet today.", "--format", "json"], rest].concat();
        let found = mlxgk(&args);
        assert_eq!(found.status, Some(0), "{}", found.stderr);
        serde_json::from_str::<Value>(&found.stdout).unwrap()["sum"].as_f64().unwrap()
    };
    let sums = [
        score(&[]),
        score(&["--adapter", &one]),
        score(&["--adapter", &two]),
        score(&both),
        score(&["-m", &merged]),
    ];
    // The merged weights are stored in bf16, as the model's are.
    assert!((sums[3] - sums[4]).abs() < 0.05, "{sums:?}");
    for other in &sums[..3] {
        assert!((sums[3] - other).abs() > 0.1, "{sums:?}");
    }
}

/// Steering during training changes what is learned, by vectors of any strength.
#[test]
fn training_is_steered() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.jsonl", DATA);
    let at = |name: &str| text(&folder.path().join(name));
    let train = |out: &str, rest: &[&str]| {
        let out = at(out);
        let common = ["train", "--data", &data, "--out", &out, "--steps", "2", "--format", "json"];
        let found = mlxgk(&[&common[..], rest].concat());
        assert_eq!(found.status, Some(0), "{}", found.stderr);
        serde_json::from_str::<Value>(&found.stdout).unwrap()["loss"].as_f64().unwrap()
    };
    train("vector", &["--method", "vector", "--lr", "0.1"]);
    let vector = at("vector/vector.safetensors");
    let plain = train("plain", &["--rank", "2"]);
    let steered = train("steered", &["--rank", "2", "--steer", &format!("{vector}:3")]);
    let none = train("none", &["--rank", "2", "--steer", &format!("{vector}:0")]);
    assert!((plain - steered).abs() > 1e-3, "{plain} {steered}");
    assert!((plain - none).abs() < 1e-6, "{plain} {none}");
}

/// A run that diverges ends in a sentence, and leaves what an earlier one wrote.
#[test]
fn a_run_that_diverges_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.jsonl", DATA);
    let pair = "{\"prompt\": \"one\", \"chosen\": \" two\", \"rejected\": \" three\"}\n";
    let pairs = write(folder.path(), "pairs.jsonl", pair);
    for (at, (data, flags)) in [
        (&data, "--lr 1e30"),
        (&data, "--lr 1e30 --steps 1"),
        (&data, "--lr 1e30 --optimizer sgd"),
        (&data, "--lr 1e30 --method soft-prompt --virtual-tokens 2"),
        (&data, "--lr 1e30 --method vector"),
        (&data, "--lr 1e30 --method dora"),
        (&data, "--lr 100 --method full --steps 4"),
        (&data, "--alpha 1e30"),
        (&data, "--weight-decay 1e30"),
        (&data, "--lr 1e30 --ema 0.5"),
        (&data, "--lr 1e10 --ema 0.5 --steps 3"),
        (&pairs, "--lr 1e30"),
        (&data, "--lr 1e30 --valid DATA --eval-every 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("out-{at}"));
        fs::create_dir(&out).unwrap();
        let files = ["adapter_model.safetensors", "vector.safetensors", "soft_prompt.safetensors"];
        for file in files {
            fs::write(out.join(file), "of an earlier run").unwrap();
        }
        let flags = flags.replace("DATA", data);
        let mut args = vec!["train", "--data", data, "--out", out.to_str().unwrap()];
        args.extend(flags.split(' '));
        if !flags.contains("--steps") {
            args.extend(["--steps", "3"]);
        }
        let run = mlxgk(&args);
        assert_eq!(run.status, Some(1), "{flags}: {}{}", run.stdout, run.stderr);
        let error = run.stderr.lines().last().unwrap();
        assert!(error.starts_with("error: ") && error.contains("step"), "{flags}: {}", run.stderr);
        for file in files {
            assert_eq!(fs::read(out.join(file)).unwrap(), b"of an earlier run", "{flags}: {file}");
        }
        let names =
            |it: std::io::Result<fs::DirEntry>| it.unwrap().file_name().into_string().unwrap();
        let left: Vec<String> = fs::read_dir(&out).unwrap().map(names).collect();
        let known = |it: &String| files.contains(&it.as_str()) || it == "metrics.jsonl";
        assert!(left.iter().all(known), "{flags}: {left:?}");
    }
}
