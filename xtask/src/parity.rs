//! `cargo xtask parity`: setup, then the comparison with the recorded goldens.

use std::path::{Path, PathBuf};

use crate::failure::Result;
use crate::{cli, process, setup, workspace};

pub(crate) const HELP: &str = "\
Runs the project on the inputs recorded from transformers and compares the outputs.

Usage: cargo xtask parity [--fixtures DIR]

  --fixtures DIR   read this folder instead of fixtures/ (its format: fixtures/README.md)

Prints one line per suite and fails on any miss.

Examples:
  cargo xtask parity
  cargo xtask parity --fixtures ../my-cases";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let fixtures = match arguments {
        [] => workspace::root().join("fixtures"),
        [option, folder] if option == "--fixtures" => PathBuf::from(folder),
        [argument, ..] => return Err(cli::unexpected("parity", argument)),
    };
    setup::ensure()?;
    check(&fixtures)
}

/// Compares with the goldens in a folder. MLX must be ready.
pub(crate) fn check(fixtures: &Path) -> Result<()> {
    process::show(
        process::cargo()
            .arg("run")
            .arg("--manifest-path")
            .arg(workspace::root().join("Cargo.toml"))
            .args(["--quiet", "--package", "mlxgk-parity", "--"])
            .arg(fixtures),
    )
}
