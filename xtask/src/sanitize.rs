//! `cargo xtask sanitize`: the tests of the C++ operations under the compiler's sanitizers.
//!
//! Our C++ is compiled once more with a sanitizer, into a library that is preloaded: its functions
//! come before those of the library that the tests are linked with. What the tests do with arrays,
//! layouts and threads is then watched without a second set of tests.

use std::path::PathBuf;
use std::process::Command;

use crate::failure::{Failure, Result};
use crate::{cli, process, setup, workspace};

pub(crate) const HELP: &str = "\
Runs the tests of the C++ operations under the compiler's sanitizers. Linux only.

Usage: cargo xtask sanitize [address] [undefined] [thread]

  address     reads and writes outside of memory, or after it was freed
  undefined   overflows, misaligned access and the like
  thread      data races

Without arguments, all three in turn. The first finding ends a run with its report. Not part of
`cargo xtask test`: it takes some minutes.

Examples:
  cargo xtask sanitize
  cargo xtask sanitize thread";

/// A sanitizer, the runtime library that must be loaded before everything else, and its settings.
struct Sanitizer {
    name: &'static str,
    runtime: &'static str,
    options: (&'static str, &'static str),
}

const SANITIZERS: [Sanitizer; 3] = [
    Sanitizer {
        name: "address",
        runtime: "libasan.so",
        // MLX never frees its thread pools and caches.
        options: ("ASAN_OPTIONS", "detect_leaks=0"),
    },
    Sanitizer {
        name: "undefined",
        runtime: "libubsan.so",
        options: ("UBSAN_OPTIONS", "print_stacktrace=1"),
    },
    Sanitizer {
        name: "thread",
        runtime: "libtsan.so",
        // What MLX, OpenBLAS and Rust do with atomics is not seen, so only accesses of our own count;
        // what their locks order is seen.
        options: ("TSAN_OPTIONS", "exitcode=66 ignore_noninstrumented_modules=1"),
    },
];

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    for argument in arguments {
        if !SANITIZERS.iter().any(|it| it.name == argument) {
            return Err(cli::unexpected("sanitize", argument));
        }
    }
    setup::ensure()?;
    let tests = tests()?;
    for sanitizer in &SANITIZERS {
        if arguments.is_empty() || arguments.iter().any(|it| it == sanitizer.name) {
            eprintln!("sanitize: compiling for {}", sanitizer.name);
            let library = setup::sanitized(sanitizer.name)?;
            let runtime = runtime(sanitizer.runtime)?;
            for test in &tests {
                let mut command = Command::new(test);
                command
                    .env("LD_PRELOAD", format!("{runtime} {}", library.display()))
                    .env(sanitizer.options.0, sanitizer.options.1)
                    .env("OPENBLAS_NUM_THREADS", "4");
                process::show(&mut command)?;
            }
        }
    }
    Ok(())
}

/// Where g++ keeps a runtime library.
fn runtime(name: &str) -> Result<String> {
    let path = process::capture(Command::new("g++").arg(format!("-print-file-name={name}")))?
        .trim()
        .to_owned();
    // Without it the name comes back as it was.
    if path.contains('/') {
        return Ok(path);
    }
    Err(Failure::usage(format!("g++ has no {name}: install its sanitizer libraries")))
}

/// Builds the tests of the operations, and returns the programs.
fn tests() -> Result<Vec<PathBuf>> {
    let messages = process::capture(process::cargo().current_dir(workspace::root()).args([
        "test",
        "--package",
        "mlxgk-native",
        "--tests",
        "--no-run",
        "--message-format=json",
    ]))?;
    let programs = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    let programs: Vec<PathBuf> = programs.collect();
    if programs.is_empty() {
        return Err(Failure::new("cargo built no tests of mlxgk-native"));
    }
    Ok(programs)
}
