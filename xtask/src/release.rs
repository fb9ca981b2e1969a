//! `cargo xtask release`: the next version, up to the tag.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::failure::{Context, Failure, Result};
use crate::{cli, process, workspace};

pub(crate) const HELP: &str = "\
Makes the next version: in Cargo.toml, in the changelog, as a commit and a tag. Shows what it would do,
and in which order the crates are published, unless it is told to do it. It pushes and publishes nothing.

Usage: cargo xtask release patch|minor|major [--execute]

  --execute   write, commit and tag; the checkout must have no changes

Examples:
  cargo xtask release minor
  cargo xtask release patch --execute";

const MANIFEST: &str = "Cargo.toml";
const CHANGELOG: &str = "CHANGELOG.md";
const UNRELEASED: &str = "## Unreleased\n";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (part, execute) = match arguments {
        [part] => (part, false),
        [part, flag] if flag == "--execute" => (part, true),
        [] => return Err(Failure::usage("which part of the version: patch, minor or major?")),
        [_, other, ..] => return Err(cli::unexpected("release", other)),
    };
    let root = workspace::root();
    let read =
        |name: &str| fs::read_to_string(root.join(name)).context(|| format!("cannot read {name}"));
    let (manifest, changelog) = (read(MANIFEST)?, read(CHANGELOG)?);
    let old = version_of(&manifest)?;
    let new = next(old, part)?;
    let today = process::capture(Command::new("date").arg("+%F"))?;
    let made = [
        (MANIFEST, with_version(&manifest, old, &new)?),
        (CHANGELOG, with_section(&changelog, &new, today.trim())?),
    ];
    println!("{old} -> {new}");
    if execute {
        write(&root, &made, &new)?;
        println!("committed and tagged v{new}; now: git push --follow-tags");
    } else {
        println!("would change {MANIFEST}, {CHANGELOG} and Cargo.lock, commit, and tag v{new}");
    }
    println!("then, in this order:");
    for package in workspace::published()? {
        println!("  cargo publish -p {}", package["name"].as_str().unwrap_or_default());
    }
    Ok(())
}

fn write(root: &Path, files: &[(&str, String)], version: &str) -> Result<()> {
    let git = |arguments: &[&str]| {
        process::capture(Command::new("git").current_dir(root).args(arguments))
    };
    if !git(&["status", "--porcelain"])?.is_empty() {
        return Err(Failure::usage("the checkout has changes: commit or put them away first"));
    }
    for (name, text) in files {
        fs::write(root.join(name), text).context(|| format!("cannot write {name}"))?;
    }
    process::capture(process::cargo().current_dir(root).args([
        "update",
        "--workspace",
        "--offline",
    ]))?;
    git(&["commit", "--all", "--message", &format!("Release {version}")])?;
    git(&[
        "tag",
        "--annotate",
        &format!("v{version}"),
        "--message",
        &format!("Version {version}"),
    ])?;
    Ok(())
}

/// The version that all crates share.
fn version_of(manifest: &str) -> Result<&str> {
    let package = manifest.split_once("[workspace.package]").map_or("", |(_, rest)| rest);
    let line = package.lines().find_map(|it| it.strip_prefix("version = \""));
    line.and_then(|it| it.strip_suffix('"'))
        .ok_or_else(|| Failure::new(format!("{MANIFEST} has no version in [workspace.package]")))
}

fn next(version: &str, part: &str) -> Result<String> {
    let numbers: Vec<u32> = version.split('.').filter_map(|it| it.parse().ok()).collect();
    let [major, minor, patch] = numbers[..] else {
        return Err(Failure::new(format!("the version {version} is not three numbers")));
    };
    match part {
        "major" => Ok(format!("{}.0.0", major + 1)),
        "minor" => Ok(format!("{major}.{}.0", minor + 1)),
        "patch" => Ok(format!("{major}.{minor}.{}", patch + 1)),
        other => Err(Failure::usage(format!(
            "unknown part `{other}` of a version; expected one of patch, minor, major"
        ))),
    }
}

/// The manifest with the new version, of the packages and of what they ask of each other.
fn with_version(manifest: &str, old: &str, new: &str) -> Result<String> {
    let mut count = 0;
    let mut lines = Vec::new();
    for line in manifest.lines() {
        let ours = line == format!("version = \"{old}\"") || line.contains("{ path = \"crates/");
        let (from, to) = (format!("version = \"{old}\""), format!("version = \"{new}\""));
        count += usize::from(ours && line.contains(&from));
        lines.push(if ours { line.replace(&from, &to) } else { line.to_owned() });
    }
    if count < 2 {
        return Err(Failure::new(format!("{MANIFEST} does not ask for {old} of its own crates")));
    }
    Ok(lines.join("\n") + "\n")
}

/// The changelog with what is unreleased under the version.
fn with_section(changelog: &str, version: &str, date: &str) -> Result<String> {
    let Some((before, after)) = changelog.split_once(UNRELEASED) else {
        return Err(Failure::new(format!("{CHANGELOG} has no section `Unreleased`")));
    };
    let section = after.split("\n## ").next().unwrap_or_default();
    if section.trim().is_empty() {
        return Err(Failure::usage(format!(
            "{CHANGELOG} has nothing under `Unreleased` to release"
        )));
    }
    Ok(format!("{before}{UNRELEASED}\n## {version} ({date})\n{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "[workspace.package]\nversion = \"0.1.9\"\n\n[workspace.dependencies]\n\
                        a = { path = \"crates/a\", version = \"0.1.9\" }\nother = { version = \"0.1.9\" }\n";

    #[test]
    fn versions_count_up() {
        for (part, expected) in [("patch", "1.2.4"), ("minor", "1.3.0"), ("major", "2.0.0")] {
            assert_eq!(next("1.2.3", part).unwrap(), expected);
        }
        assert_eq!(next("1.2.3", "tiny").unwrap_err().status(), 2);
    }

    #[test]
    fn our_own_crates_alone_get_the_version() {
        assert_eq!(version_of(TOML).unwrap(), "0.1.9");
        let made = with_version(TOML, "0.1.9", "0.2.0").unwrap();
        assert_eq!(made.matches("0.2.0").count(), 2, "{made}");
        assert!(made.contains("other = { version = \"0.1.9\" }"));
    }

    #[test]
    fn what_is_unreleased_goes_under_the_version() {
        let made =
            with_section("# Log\n\n## Unreleased\n\n- news\n\n## 0.1.0\n", "0.2.0", "2030-01-02");
        let expected = "# Log\n\n## Unreleased\n\n## 0.2.0 (2030-01-02)\n\n- news\n\n## 0.1.0\n";
        assert_eq!(made.unwrap(), expected);
        assert!(with_section("## Unreleased\n\n## 0.1.0\n\n- old\n", "0.2.0", "").is_err());
    }
}
