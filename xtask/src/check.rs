//! `cargo xtask check`: what well-known tools of others say about the crates before a release.

use std::process::Command;

use crate::failure::{Failure, Result};
use crate::{process, workspace};

pub(crate) const HELP: &str = "\
Asks other tools about the crates: all of them, or those named.

Usage: cargo xtask check [NAME...]

  semver             no breaking change since the last release (cargo-semver-checks)
  deny               licences, advisories, sources of dependencies (cargo-deny; deny.toml)
  unused             no dependency that nothing uses (cargo-machete)
  minimal-versions   builds with the oldest dependencies allowed (cargo-minimal-versions, nightly)
  targets            the crates without MLX build for WebAssembly and Windows, as far as rustup has
                     those targets

A tool that is missing is a failure that says how to install it.

Examples:
  cargo xtask check
  cargo xtask check deny unused";

/// A tool that is asked.
struct Tool {
    name: &'static str,
    /// cargo's subcommand.
    subcommand: &'static str,
    arguments: &'static [&'static str],
    install: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool {
        name: "semver",
        subcommand: "semver-checks",
        arguments: &["--workspace"],
        install: "cargo install cargo-semver-checks",
    },
    Tool {
        name: "deny",
        subcommand: "deny",
        arguments: &["check"],
        install: "cargo install cargo-deny",
    },
    Tool {
        name: "unused",
        subcommand: "machete",
        arguments: &["crates", "xtask"],
        install: "cargo install cargo-machete",
    },
    Tool {
        name: "minimal-versions",
        subcommand: "minimal-versions",
        arguments: &["check", "--workspace", "--direct", "--ignore-private"],
        install: "cargo install cargo-hack cargo-minimal-versions, and rustup toolchain install nightly",
    },
];

const TARGETS: &str = "targets";

/// Where the crates without MLX should build, too.
const OTHER_TARGETS: [&str; 3] = [WASM, "x86_64-pc-windows-gnu", "x86_64-pc-windows-msvc"];

/// WebAssembly has no network of this kind, and asks for random numbers in a way that each program must
/// choose for itself, which tokenizers need: so without default features.
const WASM: &str = "wasm32-unknown-unknown";
const NOT_ON_WASM: [&str; 1] = ["mlxgk-model-hub"];

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let names: Vec<&str> = TOOLS.iter().map(|it| it.name).chain([TARGETS]).collect();
    if let Some(unknown) = arguments.iter().find(|it| !names.contains(&it.as_str())) {
        let names = names.join(", ");
        return Err(Failure::usage(format!("unknown check `{unknown}`; expected one of {names}")));
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|it| it == name);
    let mut failed = Vec::new();
    for tool in TOOLS.iter().filter(|it| wanted(it.name)) {
        println!("== {}", tool.name);
        if let Err(failure) = ask(tool) {
            eprintln!("error: {}", failure.message().unwrap_or("it failed"));
            failed.push(tool.name);
        }
    }
    if wanted(TARGETS) {
        println!("== {TARGETS}");
        if let Err(failure) = other_targets() {
            eprintln!("error: {}", failure.message().unwrap_or("it failed"));
            failed.push(TARGETS);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("failed: {}", failed.join(", "))))
}

fn ask(tool: &Tool) -> Result<()> {
    if !process::works("cargo", &[tool.subcommand, "--version"])
        && !process::works("cargo", &[tool.subcommand, "--help"])
    {
        let Tool { subcommand, install, .. } = tool;
        return Err(Failure::usage(format!("cargo-{subcommand} is missing: {install}")));
    }
    let mut command = process::cargo();
    process::show(command.current_dir(workspace::root()).arg(tool.subcommand).args(tool.arguments))
}

fn other_targets() -> Result<()> {
    let installed =
        process::capture(Command::new("rustup").args(["target", "list", "--installed"]))?;
    let (there, missing): (Vec<&str>, Vec<&str>) =
        OTHER_TARGETS.iter().partition(|it| installed.lines().any(|line| line == **it));
    for target in missing {
        println!("{target}: not installed (rustup target add {target})");
    }
    for target in there {
        for package in workspace::published()? {
            let name = package["name"].as_str().unwrap_or_default();
            let dependencies = workspace::dependencies(name, &[])?;
            let on_mlx = dependencies.iter().any(|it| it.starts_with("mlx-rs "));
            if on_mlx || target == WASM && NOT_ON_WASM.contains(&name) {
                continue;
            }
            println!("{target}: {name}");
            let mut check = process::cargo();
            check.current_dir(workspace::root());
            check.args(["check", "--quiet", "--target", target, "--package", name]);
            if target == WASM {
                check.arg("--no-default-features");
            }
            process::show(&mut check)?;
        }
    }
    Ok(())
}
