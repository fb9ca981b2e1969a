//! `cargo xtask examples`: the programs in `examples/` compile, each a package outside the workspace.

use crate::failure::{Context, Result};
use crate::{cli, process, workspace};

pub(crate) const HELP: &str = "\
Checks that the programs in examples/ compile: the next token for candle, Burn and ONNX Runtime.

Usage: cargo xtask examples

They are packages of their own, so that nobody who builds this workspace builds those frameworks.
The one that can run without anything else, candle's, is also tested.

Example:
  cargo xtask examples";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("examples", arguments)?;
    let folder = workspace::root().join("examples");
    let mut manifests: Vec<_> = std::fs::read_dir(&folder)
        .context(|| folder.display())?
        .filter_map(|it| Some(it.ok()?.path().join("Cargo.toml")))
        .filter(|it| it.is_file())
        .collect();
    manifests.sort();
    for manifest in manifests {
        println!("{}", manifest.display());
        let mut check = process::cargo();
        check.current_dir(workspace::root());
        let what = if manifest.parent().is_some_and(|it| it.ends_with("candle")) {
            "test"
        } else {
            "check"
        };
        check.args([what, "--quiet", "--manifest-path"]).arg(&manifest);
        // What they have in common is built once.
        process::show(check.arg("--target-dir").arg(workspace::root().join("target/examples")))?;
    }
    Ok(())
}
