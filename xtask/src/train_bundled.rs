//! `cargo xtask train-bundled`: the bundled model, trained again from its corpus.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::failure::{Context, Failure, Result};
use crate::{cli, process, setup, workspace};

pub(crate) const HELP: &str = "\
Trains the bundled model again: writes its corpus, makes the tokenizer from it, and trains the network with
the project's own training crate, in release.

Usage: cargo xtask train-bundled [--tokens N] [--out DIR] [--resume]

  --tokens N   how many tokens to train on, 6000000 by default; the schedule ends there
  --out DIR    puts the trained model, loss.csv and loss.svg there, such as crates/mlx-genkit/bundled;
               without it they stay in build/bundled/run
  --resume     continues the run in build/bundled/run from its last checkpoint

Needs python3, of which the corpus uses the standard library alone. Corpus, checkpoints and the finished
model lie in build/bundled. Without --resume a run that is there is replaced. 6 million tokens take
half an hour on two cores that do nothing else.

Examples:
  cargo xtask train-bundled --tokens 200000
  cargo xtask train-bundled --out crates/mlx-genkit/bundled";

/// The folder with the model's files, and the corpus in `training`.
const BUNDLED: &str = "crates/mlx-genkit/bundled";
const SEED: u64 = 20_240_607;
/// Of other documents than those trained on.
const HELD_OUT_SEED: u64 = 20_240_608;
const TOKENS: u64 = 6_000_000;
const SHORT: u64 = 512;
const LONG: u64 = 1_024;
const LONG_EVERY: u64 = 8;
/// Characters of documents for a token to train on: there are about four to a token, and of the last
/// document of a row a part is dropped.
const CHARACTERS: u64 = 6;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    tokens: u64,
    out: Option<PathBuf>,
    resume: bool,
}

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let asked = parse(arguments)?;
    setup::ensure()?;
    let (root, build) = (workspace::root(), workspace::build().join("bundled"));
    let out = build.join("run");
    if !asked.resume {
        if out.exists() {
            fs::remove_dir_all(&out).context(|| format!("cannot remove {}", out.display()))?;
        }
        write_corpus(&build, asked.tokens)?;
    }
    let plan = json!({
        "base": root.join(BUNDLED),
        "out": out,
        "tokenizer": build.join("tokenizer.jsonl"),
        "short": { "file": build.join("short.jsonl"), "row_tokens": SHORT },
        "long": { "file": build.join("long.jsonl"), "row_tokens": LONG },
        "long_every": LONG_EVERY,
        "held_out": build.join("held-out.jsonl"),
        "tokens": asked.tokens,
        "batch_tokens": 2_048,
        "learning_rate": 3e-3,
        "muon_learning_rate": 5e-3,
        "warmup": 40,
        "save_every": 250,
        "seed": SEED,
        "resume": asked.resume,
    });
    let mut program = process::cargo();
    program.arg("run").arg("--manifest-path").arg(root.join("Cargo.toml"));
    program.args(["--release", "--package", "mlxgk-pretrain", "--"]).arg(plan.to_string());
    process::show(&mut program)?;
    asked.out.map_or(Ok(()), |to| publish(&out, &to))
}

fn parse(arguments: &[String]) -> Result<Asked> {
    let mut asked = Asked { tokens: TOKENS, out: None, resume: false };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value =
            || rest.next().ok_or_else(|| Failure::usage(format!("{argument} needs a value")));
        match argument.as_str() {
            "--tokens" => {
                let given = value()?;
                let tokens = given.parse().ok().filter(|&it| it > 0);
                asked.tokens = tokens.ok_or_else(|| {
                    Failure::usage(format!("--tokens {given}: expected a whole number above 0"))
                })?;
            }
            "--out" => asked.out = Some(PathBuf::from(value()?)),
            "--resume" => asked.resume = true,
            _ => return Err(cli::unexpected("train-bundled", argument)),
        }
    }
    Ok(asked)
}

/// Writes the documents that a run over so many tokens takes.
fn write_corpus(build: &Path, tokens: u64) -> Result<()> {
    fs::create_dir_all(build).context(|| format!("cannot make {}", build.display()))?;
    // A batch more than its share, so that a short run has one, too.
    let characters = |share: u64| CHARACTERS * (tokens / LONG_EVERY * share + 16 * LONG);
    let documents = |name: &str, seed: u64, more: &[&str], characters: u64| {
        let (seed, characters) = (seed.to_string(), characters.to_string());
        let arguments = ["documents", "--seed", &seed, "--characters", &characters];
        corpus(&[&arguments, more].concat(), &build.join(name))
    };
    corpus(
        &["tokenizer", "--seed", &SEED.to_string(), "--count", "30000"],
        &build.join("tokenizer.jsonl"),
    )?;
    documents("short.jsonl", SEED + SHORT, &[], characters(LONG_EVERY - 1))?;
    documents("long.jsonl", SEED + LONG, &[], characters(1))?;
    let held_out = ["--split", "held-out", "--echo", "0"];
    documents("held-out.jsonl", HELD_OUT_SEED, &held_out, CHARACTERS * 16 * SHORT)
}

fn corpus(arguments: &[&str], out: &Path) -> Result<()> {
    let script = workspace::root().join(BUNDLED).join("training/corpus.py");
    let mut python = Command::new("python3");
    // No cache beside the sources.
    python.env("PYTHONDONTWRITEBYTECODE", "1").arg(script).args(arguments).arg("--out").arg(out);
    process::show(&mut python)
}

/// Copies what a run has made.
fn publish(run: &Path, to: &Path) -> Result<()> {
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).context(|| format!("cannot write {}", to.display())).map(|_| ())
    };
    let training = to.join("training");
    fs::create_dir_all(&training).context(|| format!("cannot make {}", training.display()))?;
    let model = run.join("model");
    let files = fs::read_dir(&model).context(|| format!("cannot read {}", model.display()))?;
    for file in files {
        let file = file.context(|| format!("cannot read {}", model.display()))?;
        copy(&file.path(), &to.join(file.file_name()))?;
    }
    copy(&run.join("loss.csv"), &training.join("loss.csv"))?;
    copy(&run.join("loss.svg"), &to.join("loss.svg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Asked> {
        parse(&words.iter().map(|&it| it.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read_and_others_refused() {
        let asked = parsed(&["--tokens", "4096", "--resume", "--out", "there"]).unwrap();
        assert_eq!(asked, Asked { tokens: 4096, out: Some("there".into()), resume: true });
        assert_eq!(parsed(&[]).unwrap().tokens, TOKENS);
        for (wrong, part) in [
            (&["--tokens"][..], "needs a value"),
            (&["--tokens", "0"], "above 0"),
            (&["--tokens", "many"], "above 0"),
            (&["--minutes", "5"], "--minutes"),
        ] {
            let failure = parsed(wrong).unwrap_err();
            assert_eq!(failure.status(), 2);
            assert!(failure.message().unwrap().contains(part), "{wrong:?}");
        }
    }
}
