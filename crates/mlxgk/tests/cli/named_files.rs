//! Files and folders that the command line names: whichever flag it is, one that cannot be used is a wrong
//! command line. Models are not among them: what they are called may be a hub id.

use std::{fs, path::Path};

use mlx_genkit::HookPoint;

use crate::{
    shared::{fixture, mlxgk, write},
    steering::vectors,
};

/// The commands that read files.
const COMMANDS: [&str; 18] = [
    "generate",
    "chat",
    "explain",
    "score",
    "perplexity",
    "info",
    "bench",
    "validate",
    "isolate",
    "convert",
    "train",
    "adapter merge",
    "cache build",
    "cache show",
    "steer extract",
    "steer show",
    "steer import",
    "steer export",
];

/// What says why a request is refused, and exits with 0.
const EXPLAINED: [&str; 4] = ["--soft-prompt", "--prompt-cache", "--steer", "--steer-logits"];

/// Flags that a command has and refuses, whatever they name.
const UNUSED: [(&str, &str); 2] = [("train", "--steer-logits"), ("adapter merge", "--tokenizer")];

/// Files that are written.
const WRITTEN: [&str; 3] = ["--out", "--json", "--html"];

/// What a command's help says to take a file or folder: flags, and "" for an argument without one.
fn flags(command: &str) -> Vec<String> {
    let mut help: Vec<&str> = command.split(' ').collect();
    help.push("--help");
    let help = mlxgk(&help).stdout;
    let mut flags: Vec<String> = Vec::new();
    for line in help.lines().map(str::trim).filter(|it| !it.starts_with("Usage")) {
        let Some((names, value)) = line.split_once('<') else { continue };
        let flag = names.rsplit(", ").next().unwrap_or_default().trim();
        let is_file = ["FILE>", "FILE[", "FILE|", "DIR>"].iter().any(|it| value.starts_with(it));
        let is_flag = flag.is_empty() || flag.starts_with("--") && !flag.contains(' ');
        if is_file && is_flag && !WRITTEN.contains(&flag) && !flags.iter().any(|it| it == flag) {
            flags.push(flag.to_owned());
        }
    }
    flags
}

/// What there is for flags beside the one that is tried.
struct Good {
    text: String,
    data: String,
    vectors: String,
    model: String,
    example: String,
    out: String,
}

/// A command line on which `flag` names `path` and nothing else is wrong.
fn line<'a>(command: &'a str, flag: &'a str, path: &'a str, good: &'a Good) -> Vec<&'a str> {
    let mut line: Vec<&str> = command.split(' ').collect();
    let gives_prompt = ["--prompts-file", "--messages"].contains(&flag);
    let gives_pairs = ["--pairs", "--positive", "--negative"].contains(&flag);
    line.extend(match command {
        "generate" | "explain" if !gives_prompt => ["Hi", "-n", "1"].as_slice(),
        "cache build" if !gives_prompt => &["Hi"],
        "score" => &["Hi"],
        "perplexity" if !flag.is_empty() => &["TEXT"],
        "isolate" if !flag.is_empty() => &["EXAMPLE"],
        "validate" if flag == "--steer" => &[],
        "validate" => &["--steer", "VECTORS"],
        "convert" => &["MODEL"],
        "train" if flag == "--data" => &["--method", "lora"],
        "train" => &["--method", "lora", "--data", "DATA"],
        "steer extract" if !gives_pairs => &["--positive", "TEXT", "--negative", "TEXT"],
        "steer import" => &["--from", "gguf"],
        _ => &[],
    });
    match flag {
        "" => line.push(path),
        "--words" => line.extend(["--voice", "glad", flag, path]),
        "--positive" => line.extend([flag, path, "--negative", "TEXT"]),
        "--negative" => line.extend(["--positive", "TEXT", flag, path]),
        _ => line.extend([flag, path]),
    }
    if ["convert", "train", "adapter merge", "cache build"].contains(&command)
        || command.starts_with("steer ") && command != "steer show"
    {
        line.extend(["--out", "OUT"]);
    }
    let value = |it: &'a str| match it {
        "TEXT" => &good.text,
        "DATA" => &good.data,
        "VECTORS" => &good.vectors,
        "MODEL" => &good.model,
        "EXAMPLE" => &good.example,
        "OUT" => &good.out,
        other => other,
    };
    line.into_iter().map(value).collect()
}

#[test]
fn a_file_that_cannot_be_used_is_a_wrong_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let good = Good {
        text: write(folder.path(), "good.txt", "The fox went home. The lamp was warm."),
        data: write(folder.path(), "good.jsonl", r#"{"text": "The fox went home."}"#),
        vectors: vectors(folder.path(), "good.safetensors", 256, &[HookPoint::ResidPost(1)]),
        model: fixture("llama").to_str().unwrap().to_owned(),
        example: fixture("../isolation/03_pension.json").to_str().unwrap().to_owned(),
        out: at("out.safetensors"),
    };
    let damaged = write(folder.path(), "damaged", [0xFF; 64]);
    // A terabyte that takes no room on the disk, and is refused before it is read.
    let hollow = |path: &Path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    hollow(&folder.path().join("hollow"));
    let [empty, config, weights] = ["empty", "hollow-config", "hollow-weights"].map(at);
    for folder in [&empty, &config, &weights] {
        fs::create_dir(folder).unwrap();
    }
    hollow(&Path::new(&config).join("adapter_config.json"));
    hollow(&Path::new(&config).join("tokenizer.json"));
    hollow(&Path::new(&weights).join("adapter_model.safetensors"));
    hollow(&Path::new(&weights).join("tokenizer_config.json"));
    write(Path::new(&weights), "adapter_config.json", r#"{"peft_type": "LORA", "r": 8}"#);
    let mut lines = Vec::new();
    for command in COMMANDS {
        let flags = flags(command);
        assert!(!flags.is_empty(), "{command} --help names no file");
        for flag in flags {
            if UNUSED.contains(&(command, &flag)) {
                continue;
            }
            lines.push((command, flag.clone(), "nowhere".to_owned()));
            // What the flags of several commands mean is read in one place.
            if command == "generate" || !lines.iter().any(|it| it.0 == "generate" && it.1 == flag) {
                let is_folder = flag == "--tokenizer" || flag == "--adapter";
                let wrong = match is_folder {
                    true => [&empty, &config, &weights].map(Clone::clone),
                    false => [damaged.clone(), at("hollow"), at("empty")],
                };
                lines.extend(wrong.map(|it| (command, flag.clone(), it)));
            }
        }
    }
    assert!(lines.len() > 100, "only {} command lines", lines.len());
    let check = |(command, flag, path): &(&str, String, String)| {
        let line = line(command, flag, path, &good);
        let run = mlxgk(&line);
        let about = format!("{line:?}: {:?} {}{}", run.status, run.stdout, run.stderr);
        if command == &"explain" && EXPLAINED.contains(&flag.as_str()) {
            let is_told = run.stdout.starts_with("refused") && run.stdout.contains(path.as_str());
            return (run.status != Some(0) || !is_told).then_some(about);
        }
        let is_sentence = run.stderr.starts_with("error: ") && run.stderr.lines().count() == 1;
        let holds = run.status == Some(2) && is_sentence && run.stderr.contains(path.as_str());
        (!holds).then_some(about)
    };
    // Each is a process of its own.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let (first, second) = lines.split_at(lines.len() / 2);
        let other = scope.spawn(move || second.iter().filter_map(check).collect::<Vec<_>>());
        let mut wrong: Vec<String> = first.iter().filter_map(check).collect();
        wrong.extend(other.join().unwrap());
        wrong
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!Path::new(&good.out).exists());
}
