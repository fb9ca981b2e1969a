//! `cargo xtask check-adapters`: adapters and soft prompts between us, PEFT and mlx-lm.

use std::process::Command;

use crate::failure::Result;
use crate::{cli, process, python, setup, workspace};

pub(crate) const HELP: &str = "\
Has PEFT and mlx-lm load the adapters and soft prompts that mlxgk trains, and mlxgk load theirs, on dense
and packed weights, and compares all log-probabilities.

Usage: cargo xtask check-adapters

Needs the Python environment of `cargo xtask record` and PEFT beside it, which it makes where they are
missing. Some adapters are recorded in fixtures/training, and loaded by the tests without Python.

Example:
  cargo xtask check-adapters";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("check-adapters", arguments)?;
    setup::ensure()?;
    let python = python::environment("record", "xtask/record/requirements.txt")?;
    python::packages(&python, "peft", "xtask/record/peft.txt")?;
    let root = workspace::root();
    let mut build = process::cargo();
    build.arg("build").arg("--manifest-path").arg(root.join("Cargo.toml"));
    process::show(build.args(["--quiet", "--package", "mlxgk"]))?;
    let mlxgk = workspace::target()?.join("debug/mlxgk");
    let script = root.join("xtask/record/_check_adapters.py");
    process::show(Command::new(python).current_dir(root).arg(script).arg(mlxgk))
}
