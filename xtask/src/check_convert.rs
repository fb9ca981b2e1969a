//! `cargo xtask check-convert`: our conversions beside mlx-lm's.

use std::process::Command;

use crate::failure::Result;
use crate::{cli, process, python, setup, workspace};

pub(crate) const HELP: &str = "\
Converts models in every mode with mlxgk and with mlx-lm, compares the bytes, and has mlx-lm load ours.

Usage: cargo xtask check-convert

Needs the Python environment of `cargo xtask record`, which it makes where it is missing. The bytes of
some conversions are recorded in fixtures/convert, and compared by the tests without Python.

Example:
  cargo xtask check-convert";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("check-convert", arguments)?;
    setup::ensure()?;
    let python = python::environment("record", "xtask/record/requirements.txt")?;
    let root = workspace::root();
    let mut build = process::cargo();
    build.arg("build").arg("--manifest-path").arg(root.join("Cargo.toml"));
    process::show(build.args(["--quiet", "--package", "mlxgk"]))?;
    let mlxgk = workspace::target()?.join("debug/mlxgk");
    let script = root.join("xtask/record/_check_convert.py");
    process::show(Command::new(python).current_dir(root).arg(script).arg(mlxgk))
}
