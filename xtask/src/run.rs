//! `cargo xtask run`: setup, then the `mlxgk` binary.

use crate::failure::Result;
use crate::{process, setup, workspace};

pub(crate) const HELP: &str = "\
Makes MLX ready, builds the mlxgk command line and runs it.

Usage: cargo xtask run [ARGUMENTS OF MLXGK...]

Its exit status is mlxgk's. Its own help is `cargo xtask run -- --help`.

Examples:
  cargo xtask run generate --prompt \"Tell me a story.\"
  cargo xtask run info";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::ensure()?;
    // `cargo xtask run -- --help`: the dashes only kept the rest from us.
    let arguments = match arguments.split_first() {
        Some((first, rest)) if first == "--" => rest,
        _ => arguments,
    };
    let mut mlxgk = process::cargo();
    mlxgk.arg("run").arg("--manifest-path").arg(workspace::root().join("Cargo.toml"));
    mlxgk.args(["--release", "--package", "mlxgk"]);
    // The first build takes minutes, and shows what it does; later ones would only be in the way.
    if workspace::target()?.join("release/mlxgk").is_file() {
        mlxgk.arg("--quiet");
    }
    process::show(mlxgk.arg("--").args(arguments))
}
