//! The binary says no: to what it does not know, and to a folder that proves nothing.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mlxgk-parity")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_unknown_area_is_refused_by_name() {
    let output = run(&["no-such-area"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no-such-area"));
}

#[test]
fn a_folder_that_is_not_there_is_refused_by_name() {
    let output = run(&["--fixtures", "no/such/folder"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no/such/folder"));
}

#[test]
fn a_folder_without_cases_does_not_pass() {
    let empty = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-cases");
    std::fs::create_dir_all(&empty).unwrap();
    let output = run(&["--fixtures", empty.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
}
