//! The library that `setup` makes answers BLAS products rightly, one-row ones included.
//!
//! The functions are called from C++, through the library as every binary finds it.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;

#[test]
fn products_agree_with_plain_loops() {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read_to_string(xtask.join("../build/mlx-native.toml"))
        .expect("run `cargo xtask setup` first");
    let library = config
        .split('"')
        .find_map(|text| text.strip_prefix("native="))
        .expect("the configuration names the library's folder");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("blas");
    let compiled = Command::new("g++")
        .args(["-std=c++20", "-O1", "-Wall"])
        .arg(xtask.join("tests/blas.cpp"))
        .args(["-L", library, "-lmlxc", "-o"])
        .arg(&program)
        .status()
        .expect("g++ starts");
    assert!(compiled.success());
    // No LD_LIBRARY_PATH: the library must be found by its own name.
    let output = Command::new(&program).env_clear().output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
