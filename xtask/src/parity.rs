//! `cargo xtask parity`: setup, then the comparison with the recorded goldens.

use crate::failure::Result;
use crate::{process, setup, workspace};

pub(crate) const HELP: &str = "\
Runs the project on the inputs recorded from transformers and compares the outputs.

Usage: cargo xtask parity [--fixtures DIR] [AREA|TEXT...]

  --fixtures DIR   read this folder instead of fixtures/ (its format: fixtures/README.md)
  AREA             a folder in it; all of them when none is given
  TEXT             a part of the titles of cases, `area/file/case`

Prints one line per suite and fails on any miss.

Examples:
  cargo xtask parity
  cargo xtask parity samplers
  cargo xtask parity beams/llama
  cargo xtask parity --fixtures ../my-cases";

/// The subcommand. The arguments are the comparing program's to judge.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::ensure()?;
    let root = workspace::root();
    let mut parity = process::cargo();
    parity.arg("run").arg("--manifest-path").arg(root.join("Cargo.toml"));
    parity.args(["--quiet", "--package", "mlxgk-parity", "--"]);
    if !arguments.iter().any(|argument| argument == "--fixtures") {
        parity.arg("--fixtures").arg(root.join("fixtures"));
    }
    process::show(parity.args(arguments))
}
