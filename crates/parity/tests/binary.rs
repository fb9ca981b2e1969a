//! The binary says no: to what it does not know, and to a folder that proves nothing.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;
use std::process::{Command, Output};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mlxgk-parity")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_unknown_area_is_refused_by_name() {
    let output = run(&["--fixtures", FIXTURES, "no-such-area"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no case matches `no-such-area`"), "{}", stderr(&output));
}

#[test]
fn a_device_that_is_not_there_is_refused_by_name() {
    for (device, words) in [
        ("tpu", &["MLXGK_PARITY_DEVICE is \"tpu\", expected cpu or gpu"][..]),
        ("cpu", &["no case matches"]),
        ("gpu", &["but MLX has no GPU here", "no case matches"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_mlxgk-parity"))
            .args(["--fixtures", FIXTURES, "no-such-area"])
            .env("MLXGK_PARITY_DEVICE", device)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(words.iter().any(|it| said.contains(it)), "{device}: {said}");
    }
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

#[test]
fn a_fixture_without_cases_passes_in_no_area() {
    let folder = tempfile::tempdir().unwrap();
    for area in mlxgk_parity::AREAS {
        let area = folder.path().join(area.name);
        std::fs::create_dir(&area).unwrap();
        // Under the names that some areas give their files, and in the forms that any of them reads.
        for name in ["warpers", "lists", "WatermarkDetector"] {
            for (kind, rest) in [
                ("merge", r#""cases": []"#),
                (
                    "chat",
                    r#""tokenizer_config": {"chat_template": "a"}, "now": "2026-01-01T00:00:00",
                    "conversations": {}, "cases": []"#,
                ),
                (
                    "generate",
                    r#""model": "../../../fixtures/models/llama", "assistant": "", "stride": 1,
                    "cases": [], "forward": [], "greedy": [], "reference": "transformers""#,
                ),
            ] {
                std::fs::write(
                    area.join(format!("{name}.json")),
                    format!(r#"{{"kind": "{kind}", {rest}}}"#),
                )
                .unwrap();
                let name = area.file_name().unwrap().to_str().unwrap();
                let output = run(&["--fixtures", folder.path().to_str().unwrap(), name]);
                let table = String::from_utf8_lossy(&output.stdout);
                assert_eq!(output.status.code(), Some(1), "{name}: {table}");
                assert!(table.contains("test result: FAILED. 0 passed"), "{name}: {table}");
            }
        }
        std::fs::remove_dir_all(&area).unwrap();
    }
}

#[test]
fn cases_are_chosen_by_a_part_of_their_titles() {
    let output = run(&["--fixtures", FIXTURES, "samplers/generator/randperm(1)"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && table.contains("samplers/generator"), "{table}");
    assert!(!table.contains("samplers/warpers"), "{table}");
}
