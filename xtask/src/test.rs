//! `cargo xtask test`: setup, every test, then the parity suite.

use std::process::Command;

use crate::failure::Result;
use crate::{cli, process, setup, workspace};

pub(crate) const HELP: &str = "\
Makes MLX ready, runs every test of every crate (doc tests too), then the parity suite.

Usage: cargo xtask test

To run a part of it, use cargo itself after `cargo xtask setup`.

Examples:
  cargo xtask test
  cargo test -p mlxgk-kv-cache";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("test", arguments)?;
    setup::ensure()?;
    // xtask apart from the rest, in the profile it was built in: its dependencies are costly to
    // optimise, and gain nothing.
    cargo_test(&["--profile", "xtask", "--package", "xtask"])?;
    cargo_test(&["--workspace", "--exclude", "xtask"])?;
    // That built the parity program too, for its own tests. Asking cargo for it alone would choose
    // other features for shared dependencies, and so build MLX's crates and the tokenizers again.
    let program = workspace::target()?.join("debug/mlxgk-parity");
    process::show(Command::new(program).arg("--fixtures").arg(workspace::root().join("fixtures")))
}

fn cargo_test(selection: &[&str]) -> Result<()> {
    let mut test = process::cargo();
    test.current_dir(workspace::root()).arg("test").args(selection);
    if cfg!(target_os = "macos") {
        // Metal's command buffers are not made for several test threads at once.
        test.args(["--", "--test-threads=1"]);
    }
    process::show(&mut test)
}
