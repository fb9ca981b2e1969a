//! `cargo xtask mac-check`: everything that only a Mac can show, in one report.

use std::fs;
use std::process::Command;

use crate::failure::{Context, Failure, Result};
use crate::{cli, process, setup, workspace};

pub(crate) const HELP: &str = "\
Runs on a Mac what only a Mac can show, and writes build/mac-check.md: parity, the search for the Metal
library, steering, memory limits, and speed beside mlx-lm. docs/metal.md says what it should print.

Usage: cargo xtask mac-check

It goes on after a failure, and fails at the end. For the measurements it needs python3 with venv, and
installs torch, transformers and mlx-lm into build/venv.

Example:
  cargo xtask mac-check";

const REPORT: &str = "mac-check.md";

/// One thing that is tried: a heading, shell commands, and what they should say.
struct Section {
    heading: &'static str,
    script: &'static str,
    expected: &'static str,
}

/// In the scripts `mlxgk` is the program that was built, and the folder is the checkout's.
const SECTIONS: &[Section] = &[
    Section {
        heading: "Machine",
        script: "sw_vers; sysctl -n machdep.cpu.brand_string hw.memsize; xcodebuild -version; cargo --version; git rev-parse HEAD",
        expected: "macOS 14 or newer, an Apple chip",
    },
    Section {
        heading: "Metal library",
        script: "find \"${MLX_RS_METAL_PATH:-$HOME/.mlx/lib}\" -name mlx.metallib; cd /; mlxgk info --device gpu",
        expected: "a path; the model's parts",
    },
    Section {
        heading: "Parity on the GPU",
        script: "cargo xtask parity",
        expected: "every case holds",
    },
    Section {
        heading: "CPU and GPU",
        script: "for device in cpu gpu; do mlxgk generate 'Tell me about the harbour.' --dtype float32 --temp 0 --device $device > build/mac-$device.txt; done; diff build/mac-cpu.txt build/mac-gpu.txt && cat build/mac-gpu.txt",
        expected: "one text",
    },
    Section {
        heading: "Tests",
        script: "cargo test --workspace -- --test-threads=1 2>&1 | grep -E 'test result|FAILED|panicked'; exit ${PIPESTATUS[0]}",
        expected: "nothing failed",
    },
    Section {
        heading: "Steering",
        script: "mlxgk steer extract --pairs examples/steering/pairs.jsonl --system 'You are a moody assistant.' --out build/joy.safetensors && mlxgk validate --steer build/joy.safetensors --steer-layers 1-3 --steer-positions generation --prompts-file examples/steering/prompts.jsonl --words examples/steering/voices.json --voice cheerful --alphas 1,2 --max-tokens 48 && mlxgk generate 'Tell me about rain.' --temp 0 --steer build/joy.safetensors:2 --steer-kl 0.1",
        expected: "cheerful answers rise with alpha, fall against it, and stay under random directions",
    },
    Section {
        heading: "Memory",
        script: "for limit in '' '--max-kv-size 512'; do /usr/bin/time -l mlxgk generate 'Once' --no-auto-chat --temp 0 --min-new-tokens 4000 --max-tokens 4000 $limit 2>&1 >/dev/null | grep 'maximum resident'; done",
        expected: "the second is smaller",
    },
    Section {
        heading: "Choice on the device",
        script: "for flag in '' --choose-on-device '' --choose-on-device; do mlxgk bench -n 512 $flag | grep decode; done",
        expected: "tokens per second, the second and fourth with the choice on the device",
    },
    Section {
        heading: "Speed",
        // The bench writes its page, which here is not for the repository.
        script: "mkdir -p build/kept && cp docs/benchmarks.md docs/*.svg build/kept && cargo xtask bench --peers; status=$?; mv build/kept/*.md build/kept/*.svg docs; exit $status",
        expected: "tokens per second, within a few per cent of mlx-lm's at the 0.6B shape; goals are Linux's",
    },
];

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("mac-check", arguments)?;
    if !cfg!(target_os = "macos") {
        return Err(Failure::usage("mac-check runs on a Mac; see docs/metal.md"));
    }
    setup::ensure()?;
    let root = workspace::root();
    let mut build = process::cargo();
    process::show(build.current_dir(&root).args(["build", "--release", "--package", "mlxgk"]))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", workspace::target()?.join("release").display());
    let mut report = String::from("# mac-check\n");
    let mut failed = Vec::new();
    for section in SECTIONS {
        eprintln!("== {}", section.heading);
        let mut shell = Command::new("bash");
        shell.current_dir(&root).env("PATH", &path).args(["-c", section.script]);
        let output = shell.output().context(|| "cannot start bash")?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text += &String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            failed.push(section.heading);
        }
        report += &section.written(&text, output.status.success());
    }
    let to = workspace::build().join(REPORT);
    fs::write(&to, &report).context(|| format!("cannot write {}", to.display()))?;
    println!("{report}\nwritten to {}", to.display());
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("failed: {}", failed.join(", "))))
}

impl Section {
    /// The section of the report.
    fn written(&self, output: &str, succeeded: bool) -> String {
        let Self { heading, script, expected } = self;
        let verdict = if succeeded { "succeeded" } else { "FAILED" };
        let output = output.trim_end();
        format!(
            "\n## {heading}: {verdict}\n\nExpected: {expected}.\n\n```sh\n{script}\n```\n\n```text\n{output}\n```\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_names_every_section() {
        let guide = fs::read_to_string(workspace::root().join("docs/metal.md")).unwrap();
        for section in SECTIONS {
            assert!(guide.contains(&format!("| {} |", section.heading)), "{}", section.heading);
        }
    }

    #[test]
    fn a_failure_can_be_seen() {
        let section = Section { heading: "One", script: "false", expected: "nothing" };
        assert!(section.written("gone\n", false).starts_with("\n## One: FAILED\n"));
    }
}
