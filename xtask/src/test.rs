//! `cargo xtask test`: setup, every test, then the parity suite.

use crate::failure::Result;
use crate::{cli, parity, process, setup, workspace};

pub(crate) const HELP: &str = "\
Makes MLX ready, runs every test of every crate (doc tests too), then the parity suite.

Usage: cargo xtask test

To run a part, use cargo after `cargo xtask setup`.

Examples:
  cargo xtask test
  cargo test -p mlxgk-kv-cache";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("test", arguments)?;
    setup::ensure()?;
    let mut tests = process::cargo();
    tests.current_dir(workspace::root()).args(["test", "--workspace"]);
    if cfg!(target_os = "macos") {
        // Metal's command buffers are not safe to use from several test threads at once.
        tests.args(["--", "--test-threads=1"]);
    }
    process::show(&mut tests)?;
    parity::check(&workspace::root().join("fixtures"))
}
