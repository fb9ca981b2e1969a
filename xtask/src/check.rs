//! `cargo xtask check`: what well-known tools of others say about the crates before a release.

use std::process::Command;

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::{process, workspace};

pub(crate) const HELP: &str = "\
Asks other tools about the crates: all of them, or those named.

Usage: cargo xtask check [NAME...]

  semver             no breaking change since the last release (cargo-semver-checks)
  deny               licences, advisories, sources of dependencies (cargo-deny; deny.toml)
  unused             no dependency that nothing uses (cargo-machete)
  minimal-versions   builds with the oldest dependencies allowed (cargo-minimal-versions, nightly)
  rust               the crates without MLX build with the oldest Rust that they state (rustup)
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

/// A check of our own.
struct Own {
    name: &'static str,
    run: fn() -> Result<()>,
}

const OWN: &[Own] =
    &[Own { name: "rust", run: oldest_rust }, Own { name: "targets", run: other_targets }];

/// Where the crates without MLX should build, too.
const OTHER_TARGETS: [&str; 3] = [WASM, "x86_64-pc-windows-gnu", "x86_64-pc-windows-msvc"];

/// WebAssembly has no network of this kind, and each program must choose for itself where random numbers
/// come from, which tokenizers and grammars need: so without default features, and with a choice that no
/// program would make.
const WASM: &str = "wasm32-unknown-unknown";
const NOT_ON_WASM: [&str; 1] = ["mlxgk-model-hub"];
const CHOICE: (&str, &str) =
    ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", "--cfg getrandom_backend=\"unsupported\"");

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let names: Vec<&str> =
        TOOLS.iter().map(|it| it.name).chain(OWN.iter().map(|it| it.name)).collect();
    if let Some(unknown) = arguments.iter().find(|it| !names.contains(&it.as_str())) {
        let names = names.join(", ");
        return Err(Failure::usage(format!("unknown check `{unknown}`; expected one of {names}")));
    }
    let mut failed = Vec::new();
    for name in names {
        if !arguments.is_empty() && !arguments.iter().any(|it| it == name) {
            continue;
        }
        println!("== {name}");
        let tool = TOOLS.iter().find(|it| it.name == name).map(ask);
        let own = || OWN.iter().find(|it| it.name == name).map_or(Ok(()), |it| (it.run)());
        if let Err(failure) = tool.unwrap_or_else(own) {
            eprintln!("error: {}", failure.message().unwrap_or("it failed"));
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("failed: {}", failed.join(", "))))
}

fn ask(tool: &Tool) -> Result<()> {
    let is_there = |flag| process::succeeds(subcommand(tool).arg(flag));
    if !is_there("--version") && !is_there("--help") {
        let Tool { subcommand, install, .. } = tool;
        return Err(Failure::usage(format!("cargo-{subcommand} is missing: {install}")));
    }
    process::show(subcommand(tool).current_dir(workspace::root()).args(tool.arguments))
}

/// The tool as cargo starts it. Where the name of a package is set, as `cargo run` does for this program,
/// cargo-machete takes its own name for an argument.
fn subcommand(tool: &Tool) -> Command {
    let mut command = process::cargo();
    command.env_remove("CARGO_PKG_NAME").arg(tool.subcommand);
    command
}

/// The published crates that take no MLX.
fn without_mlx() -> Result<Vec<Value>> {
    let mut without = Vec::new();
    for package in workspace::published()? {
        let name = package["name"].as_str().unwrap_or_default();
        let dependencies = workspace::dependencies(name, &[])?;
        if !dependencies.iter().any(|it| it.starts_with("mlx-rs ")) {
            without.push(package);
        }
    }
    Ok(without)
}

fn oldest_rust() -> Result<()> {
    let packages = without_mlx()?;
    let mut versions: Vec<&str> =
        packages.iter().filter_map(|it| it["rust_version"].as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    for version in versions {
        if !process::works("rustup", &["run", version, "cargo", "--version"]) {
            return Err(Failure::usage(format!(
                "Rust {version} is missing: rustup toolchain install {version} --profile minimal"
            )));
        }
        let mut check = Command::new("rustup");
        // Not from the checkout, whose configuration is for newer releases of cargo. Other members of the
        // workspace may ask for a newer Rust; the crates' own dependencies are compiled all the same.
        check.current_dir("/").args([
            "run",
            version,
            "cargo",
            "check",
            "--lib",
            "--ignore-rust-version",
        ]);
        check.arg("--manifest-path").arg(workspace::root().join("Cargo.toml"));
        check.arg("--target-dir").arg(workspace::target()?.join(format!("rust-{version}")));
        for package in packages.iter().filter(|it| it["rust_version"] == version) {
            let name = package["name"].as_str().unwrap_or_default();
            println!("{version}: {name}");
            check.args(["--package", name]);
        }
        // Without that configuration `native-config` refuses to build, unless it is for docs.rs.
        check.env("DOCS_RS", "1");
        process::show(check.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN"))?;
    }
    Ok(())
}

fn other_targets() -> Result<()> {
    let installed =
        process::capture(Command::new("rustup").args(["target", "list", "--installed"]))?;
    let packages = without_mlx()?;
    for target in OTHER_TARGETS {
        if !installed.lines().any(|it| it == target) {
            println!("{target}: not installed (rustup target add {target})");
            continue;
        }
        for name in packages.iter().filter_map(|it| it["name"].as_str()) {
            if target == WASM && NOT_ON_WASM.contains(&name) {
                continue;
            }
            println!("{target}: {name}");
            let mut check = process::cargo();
            check.current_dir(workspace::root());
            check.args(["check", "--quiet", "--target", target, "--package", name]);
            if target == WASM {
                check.arg("--no-default-features").env(CHOICE.0, CHOICE.1);
            }
            process::show(&mut check)?;
        }
    }
    Ok(())
}
