//! `cargo xtask fuzz`: the fuzz targets for a number of inputs each, and what they found.
//!
//! The stable compiler puts in the counters that libFuzzer follows, so that no other toolchain is needed;
//! arithmetic that overflows and assertions count as findings, what only the address sanitizer sees does not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::failure::{Context, Failure, Result};
use crate::{cli, process, setup, workspace};

pub(crate) const HELP: &str = "\
Feeds random files, configs, templates, grammars and requests to the fuzz targets (fuzz/README.md).

Usage: cargo xtask fuzz [--runs N] [TARGET...]

  --runs N   inputs of each target; 100000 by default
  TARGET     a file in fuzz/fuzz_targets; all of them when none is given

Prints a line per target: inputs, findings, and where the input of a finding lies. Needs python3,
which writes what each target begins with. Not part of `cargo xtask test`: it builds everything again,
instrumented.

Examples:
  cargo xtask fuzz
  cargo xtask fuzz --runs 1000000 weights steering_files";

/// What makes libFuzzer see where an input leads, and overflow a finding.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions \
                     -Coverflow-checks";

/// Targets whose inputs have to be short, since work grows with them faster than what is found.
const SHORT: [(&str, u32); 2] = [("grammar", 400), ("chat_template", 2000)];

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (runs, targets) = parse(arguments)?;
    setup::ensure()?;
    let folder = workspace::root().join("fuzz");
    process::show(Command::new("python3").arg(folder.join("seeds.py")))?;
    let programs = build(&folder)?;
    let mut lines = Vec::new();
    for target in &targets {
        lines.push(fuzz(&folder, &programs, target, runs)?);
    }
    println!("{:<20} {:>12} {:>9}", "target", "inputs", "findings");
    for it in &lines {
        println!("{:<20} {:>12} {:>9}", it.target, it.inputs, it.findings.len());
        it.findings.iter().for_each(|path| println!("  {}", path.display()));
    }
    match lines.iter().all(|it| it.findings.is_empty()) {
        true => Ok(()),
        false => Err(Failure::new("fuzzing found something: run the target on the file it left")),
    }
}

fn parse(arguments: &[String]) -> Result<(u64, Vec<String>)> {
    let known = targets()?;
    let (mut runs, mut chosen) = (100_000, Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--runs" {
            let number = arguments.next().and_then(|it| it.parse().ok()).filter(|it| *it > 0);
            runs = number.ok_or_else(|| Failure::usage("--runs needs a number above 0"))?;
        } else if known.contains(argument) {
            chosen.push(argument.clone());
        } else {
            return Err(cli::unexpected("fuzz", argument));
        }
    }
    Ok((runs, if chosen.is_empty() { known } else { chosen }))
}

/// The names of the targets.
fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("fuzz/fuzz_targets");
    let doing = || format!("cannot read {}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).context(doing)? {
        let path = entry.context(doing)?.path();
        names.extend(path.file_stem().map(|it| it.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds all targets, and returns the folder of the programs.
fn build(folder: &Path) -> Result<PathBuf> {
    let version = process::capture(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|it| it.strip_prefix("host: "));
    let host = host.ok_or_else(|| Failure::new("rustc does not say what it compiles for"))?;
    // With a target named, build scripts and macros are built without these flags.
    let arguments = ["build", "--release", "--locked", "--target", host];
    let mut cargo = process::cargo();
    process::show(cargo.current_dir(folder).args(arguments).env("RUSTFLAGS", FLAGS))?;
    Ok(folder.join("target").join(host).join("release"))
}

/// What a target did.
struct Line {
    target: String,
    inputs: u64,
    findings: Vec<PathBuf>,
}

/// Runs a target until it has had its inputs, or found something.
fn fuzz(folder: &Path, programs: &Path, target: &str, runs: u64) -> Result<Line> {
    let (corpus, artifacts) =
        (folder.join("corpus").join(target), folder.join("artifacts").join(target));
    // The same finding has the same name in every run.
    if artifacts.exists() {
        fs::remove_dir_all(&artifacts)
            .context(|| format!("cannot empty {}", artifacts.display()))?;
    }
    for it in [&corpus, &artifacts] {
        fs::create_dir_all(it).context(|| format!("cannot make {}", it.display()))?;
    }
    let mut command = Command::new(programs.join(target));
    command.arg(&corpus).arg(format!("-runs={runs}")).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    if let Some((_, most)) = SHORT.iter().find(|it| it.0 == target) {
        command.arg(format!("-max_len={most}"));
    }
    let mut inputs = None;
    let succeeded = process::show_lines(&mut command, |line| {
        let number = line.strip_prefix("stat::number_of_executed_units:");
        inputs = number.and_then(|it| it.trim().parse().ok()).or(inputs);
    })?;
    let findings = files(&artifacts)?;
    match (succeeded, inputs) {
        (true, Some(inputs)) => Ok(Line { target: target.to_owned(), inputs, findings }),
        (false, _) if !findings.is_empty() => {
            Ok(Line { target: target.to_owned(), inputs: inputs.unwrap_or(0), findings })
        }
        _ => Err(Failure::new(format!("the fuzz target {target} ended without a count"))),
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("cannot read {}", folder.display());
    fs::read_dir(folder).context(doing)?.map(|it| Ok(it.context(doing)?.path())).collect()
}
