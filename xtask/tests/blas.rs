//! The library that `setup` makes: its products are right, and a program that uses it can end.
//!
//! The functions are called from C++, through the library as every binary finds it.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Compiles a program of this folder against the library.
#[allow(clippy::expect_used, reason = "the helper of a test may panic like the test")]
fn compile(name: &str) -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read_to_string(xtask.join("../build/mlx-native.toml"))
        .expect("run `cargo xtask setup` first");
    let library = config
        .split('"')
        .find_map(|text| text.strip_prefix("native="))
        .expect("the configuration names the library's folder");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let compiled = Command::new("g++")
        .args(["-std=c++20", "-O1", "-Wall"])
        .arg(xtask.join("tests").join(name).with_extension("cpp"))
        .args(["-L", library, "-lmlxc", "-o"])
        .arg(&program)
        .status()
        .expect("g++ starts");
    assert!(compiled.success());
    program
}

#[test]
fn products_agree_with_plain_loops() {
    // No LD_LIBRARY_PATH: the library must be found by its own name.
    let output = Command::new(compile("blas")).env_clear().output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// OpenBLAS alone hangs in nearly half of these exits.
#[test]
fn a_program_ends_while_a_product_is_under_way() {
    let program = compile("exit");
    for round in 0..20 {
        let mut child = Command::new(&program).spawn().expect("the program starts");
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break status;
            }
            // Beyond what any load makes of a program that takes milliseconds.
            if start.elapsed() > Duration::from_secs(600) {
                child.kill().expect("a child can be killed");
                panic!("exit {round} hangs");
            }
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "exit {round}: {status}");
    }
}
