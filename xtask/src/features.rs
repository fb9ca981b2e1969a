//! `cargo xtask features`: every crate builds with none of its features, and with each alone.

use crate::failure::Result;
use crate::{cli, process, setup, workspace};

pub(crate) const HELP: &str = "\
Checks every crate that has features: without any, and with each of them alone.

Usage: cargo xtask features

What builds with the default features only is caught here: the test run enables them all.

Example:
  cargo xtask features";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("features", arguments)?;
    setup::ensure()?;
    for (package, features) in workspace::features()? {
        check(&package, None)?;
        for feature in features.iter().filter(|it| *it != "default") {
            check(&package, Some(feature))?;
        }
    }
    Ok(())
}

fn check(package: &str, feature: Option<&str>) -> Result<()> {
    println!("{package} with {}", feature.unwrap_or("no feature"));
    let mut check = process::cargo();
    check.current_dir(workspace::root());
    check.args([
        "clippy",
        "--quiet",
        "--all-targets",
        "--no-default-features",
        "--package",
        package,
    ]);
    if let Some(feature) = feature {
        check.args(["--features", feature]);
    }
    process::show(check.args(["--", "-D", "warnings"]))
}
