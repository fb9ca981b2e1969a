//! Help: short and long, under headings, with what the fields' documentation says.

use crate::shared::mlxgk;

#[track_caller]
fn help(args: &[&str]) -> String {
    let run = mlxgk(args);
    assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""), "{args:?}");
    run.stdout
}

/// The help as one line, so that it does not matter where it is broken.
fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn short_help_is_short_and_long_help_is_whole() {
    for command in ["generate", "chat", "explain"] {
        let (short, long) = (help(&[command, "-h"]), help(&[command, "--help"]));
        assert!(2 * short.lines().count() < long.lines().count(), "{command}");
        for flag in ["--max-tokens", "--temp", "--top-p", "--stop", "--model", "--steer"] {
            assert!(short.contains(flag) && long.contains(flag), "{command}: {flag}");
        }
        assert!(!short.contains("--xtc-threshold") && long.contains("--xtc-threshold"));
        assert!(short.contains(&format!("`mlxgk help {command}` shows every flag")), "{short}");
        assert!(!long.contains("shows every flag"), "{long}");
        assert_eq!(help(&["help", command]), long);
    }
}

#[test]
fn flags_are_under_headings() {
    let long = help(&["generate", "--help"]);
    for heading in [
        "Length and stopping",
        "Sampling",
        "Penalties",
        "Beams",
        "Helpers",
        "Structured output",
        "Cache",
        "Steering",
        "Output",
    ] {
        assert_eq!(long.matches(&format!("\n{heading}:\n")).count(), 1, "{heading}");
    }
}

#[test]
fn flags_tell_their_defaults_ranges_and_other_names() {
    let long = joined(&help(&["generate", "--help"]));
    for part in [
        "0 for all; 50 by default.",
        "arXiv 1904.09751). Range: 0 to 1.",
        "Range: above 0, at most 1.",
        "[also: --max-new-tokens]",
        "[also: --temperature]",
        "256 where no length is set anywhere.",
    ] {
        assert!(long.contains(part), "{part:?} is not in:\n{long}");
    }
}
