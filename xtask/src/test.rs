//! `cargo xtask test`: setup, then every test, the parity suite among them.

use std::process::Command;

use crate::failure::{Failure, Result};
use crate::{cli, process, setup};

pub(crate) const HELP: &str = "\
Makes MLX ready and runs every test of every crate: doc tests, and the parity suite, in which each
recorded case is a test of its own. Goes on to the end, and then lists what failed.

Usage: cargo xtask test [--device cpu | gpu]

  --device D   only the parity suite, computed on the CPU or the GPU; refused where MLX has no GPU

To run a part of it, use cargo itself after `cargo xtask setup`.

Examples:
  cargo xtask test
  cargo xtask test --device gpu
  cargo test -p mlxgk-kv-cache
  cargo test -p mlxgk-samplers --test goldens -- top_p
  cargo test -p mlxgk-parity --test goldens -- beams/llama";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let device = device(arguments)?;
    setup::ensure()?;
    let runs = match device {
        // xtask apart from the rest, in the profile it was built in: its dependencies are costly to
        // optimise, and gain nothing.
        None => vec![
            cargo_test(&["--profile", "xtask", "--package", "xtask"], None)?,
            cargo_test(&["--workspace", "--exclude", "xtask"], None)?,
        ],
        Some(_) => vec![cargo_test(&["--package", "mlxgk-parity", "--test", "goldens"], device)?],
    };
    let failed = runs.iter().any(|it| !it.succeeded);
    let mut all = Outcome::default();
    runs.into_iter().for_each(|it| all.extend(it));
    println!("\n{}", all.summary());
    if failed { Err(Failure::silent(1)) } else { Ok(()) }
}

/// The device that is asked for.
fn device(arguments: &[String]) -> Result<Option<&str>> {
    match arguments {
        [] => Ok(None),
        [flag, device] if flag == "--device" && matches!(&**device, "cpu" | "gpu") => {
            Ok(Some(device))
        }
        [flag, ..] if flag == "--device" => Err(Failure::usage("--device takes cpu or gpu")),
        [other, ..] => Err(cli::unexpected("test", other)),
    }
}

fn cargo_test(selection: &[&str], device: Option<&str>) -> Result<Outcome> {
    let mut test = process::cargo();
    test.current_dir(crate::workspace::root()).args(["test", "--no-fail-fast"]).args(selection);
    if cfg!(target_os = "macos") {
        // Metal's command buffers are not made for several test threads at once.
        test.args(["--", "--test-threads=1"]);
    }
    if let Some(device) = device {
        // As crates/parity/src/device.rs reads it.
        test.env("MLXGK_PARITY_DEVICE", device);
    }
    if std::env::var_os("OPENBLAS_NUM_THREADS").is_none() {
        // Tests already run side by side, on small models: a product's threads would only wait.
        test.env("OPENBLAS_NUM_THREADS", "1");
    }
    watch(&mut test)
}

/// Runs cargo, shows what it prints, and notes what failed.
fn watch(test: &mut Command) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    outcome.succeeded = process::show_lines(test, |line| outcome.read(line))?;
    Ok(outcome)
}

/// What one or more runs of `cargo test` came to.
#[derive(Debug, Default)]
struct Outcome {
    succeeded: bool,
    passed: usize,
    /// The tests that failed, each with its target.
    failed: Vec<String>,
    /// The targets that cargo reports as failed, as it would be given them.
    targets: Vec<String>,
    /// What runs at the moment.
    running: String,
    /// Whether cargo is at its list of failed targets.
    listing: bool,
}

impl Outcome {
    /// Reads one line that cargo or a test program printed.
    fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(name) = self.listing.then(|| line.strip_prefix('`')).flatten() {
            self.targets.extend(name.split_once('`').map(|(name, _)| name.to_owned()));
            return;
        }
        self.listing = line.starts_with("error: ")
            && (line.ends_with(" target failed:") || line.ends_with(" targets failed:"));
        if let Some(running) = line.strip_prefix("Running ") {
            running.split(" (").next().unwrap_or_default().clone_into(&mut self.running);
        } else if let Some(name) = line.strip_prefix("Doc-tests ") {
            self.running = format!("doc tests of {name}");
        } else if let Some(result) = line.strip_prefix("test result: ") {
            let passed = result.split_once(". ").and_then(|(_, it)| it.split_once(" passed"));
            self.passed += passed.and_then(|(count, _)| count.parse::<usize>().ok()).unwrap_or(0);
        } else if let Some(name) = line.strip_prefix("test ").and_then(|it| failed_name(it)) {
            self.failed.push(format!("{name} ({})", self.running));
        }
    }

    fn extend(&mut self, other: Self) {
        self.succeeded &= other.succeeded;
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.targets.extend(other.targets);
    }

    fn summary(&self) -> String {
        let mut text = format!("all tests: {} passed; {} failed", self.passed, self.failed.len());
        for name in &self.failed {
            text += &format!("\n  failed: {name}");
        }
        for target in &self.targets {
            text += &format!("\n  run it again: cargo test {target}");
        }
        text
    }
}

/// The name in `NAME ... FAILED`; libtest-mimic pads the name.
fn failed_name(line: &str) -> Option<&str> {
    line.strip_suffix(" ... FAILED").map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_cpu_or_gpu() {
        let asked = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&it| it.to_owned()).collect();
            device(&words).map(|it| it.map(str::to_owned))
        };
        assert_eq!(asked(&[]).unwrap(), None);
        assert_eq!(asked(&["--device", "gpu"]).unwrap().as_deref(), Some("gpu"));
        for wrong in [&["--device"][..], &["--device", "tpu"], &["--device", "gpu", "cpu"]] {
            let failure = asked(wrong).unwrap_err();
            assert_eq!(failure.message(), Some("--device takes cpu or gpu"), "{wrong:?}");
        }
        assert!(asked(&["gpu"]).unwrap_err().message().unwrap().contains("unexpected argument"));
    }

    #[test]
    fn what_failed_is_listed_at_the_end() {
        let mut outcome = Outcome::default();
        for line in [
            "     Running unittests src/lib.rs (target/debug/deps/a-0123)",
            "test one ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored",
            "     Running tests/cli/main.rs (target/debug/deps/cli-0123)",
            "test chat::two ... FAILED",
            "test result: FAILED. 40 passed; 1 failed; 0 ignored",
            "   Doc-tests mlxgk_samplers",
            "test crates/samplers/src/lib.rs - a (line 3) ... FAILED",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored",
            "error: 2 targets failed:",
            "    `-p mlxgk --test cli`",
            "    `-p mlxgk-samplers --doc`",
        ] {
            outcome.read(line);
        }
        assert_eq!(
            outcome.summary(),
            "all tests: 43 passed; 2 failed\n  \
             failed: chat::two (tests/cli/main.rs)\n  \
             failed: crates/samplers/src/lib.rs - a (line 3) (doc tests of mlxgk_samplers)\n  \
             run it again: cargo test -p mlxgk --test cli\n  \
             run it again: cargo test -p mlxgk-samplers --doc"
        );
    }
}
