//! `cargo xtask record`: the goldens, recorded anew from transformers.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::failure::{Context, Failure, Result};
use crate::{process, workspace};

pub(crate) const HELP: &str = "\
Records the fixtures anew from transformers on torch, into fixtures/.

Usage: cargo xtask record [AREA...]

  AREA   a part of the fixtures, as xtask/record names its files; all of them when none is given

Needs python3 with venv. The first time it installs the versions pinned in
xtask/record/requirements.txt into build/venv/record: on Linux almost 6 GB, since the published
torch brings CUDA along. Everyone else reads the committed files and needs none of this.

Examples:
  cargo xtask record
  cargo xtask record processors samplers";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let root = workspace::root();
    let requirements = root.join("xtask/record/requirements.txt");
    let environment = workspace::build().join("venv/record");
    ensure_environment(&environment, &requirements)?;
    process::show(
        Command::new(environment.join("bin/python"))
            .current_dir(&root)
            .arg("xtask/record")
            .args(arguments),
    )
}

/// Makes the Python environment unless it holds exactly what the requirements file asks for.
fn ensure_environment(environment: &Path, requirements: &Path) -> Result<()> {
    let wanted = fs::read_to_string(requirements)
        .context(|| format!("cannot read {}", requirements.display()))?;
    let stamp = environment.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let python = environment.join("bin/python");
    eprintln!("record: installing torch and transformers into {}", environment.display());
    if !process::works(&python, &["-m", "pip", "--version"]) {
        create(environment)?;
    }
    process::show(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(requirements),
    )?;
    // Last, so that an installation that stopped halfway is taken up again.
    fs::write(&stamp, wanted).context(|| format!("cannot write {}", stamp.display()))
}

/// Makes an empty Python environment, with pip in it.
fn create(environment: &Path) -> Result<()> {
    if !process::works("python3", &["-c", "import venv, ensurepip"]) {
        return Err(Failure::usage(
            "python3 with its venv module is missing: install it (Debian, Ubuntu: `apt install \
             python3-venv`; Fedora: `dnf install python3`)",
        ));
    }
    process::show(Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment))
}
