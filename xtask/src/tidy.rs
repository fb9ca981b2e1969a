//! `cargo xtask tidy`: the house rules that neither the compiler nor clippy checks.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::failure::{Context, Failure, Result};
use crate::{cli, links, process, prose, workspace};

pub(crate) const HELP: &str = "\
Checks the house rules that no compiler checks.

Usage: cargo xtask tidy

  - every Rust module opens with `//!`, saying what it is for
  - no line ends in a space or a tab
  - every crate has a README.md
  - links between pages lead somewhere, also from crates.io, docs.rs and the book
  - every page in docs/ is a chapter of the book (docs/SUMMARY.md)
  - strings, documentation and Markdown are plain English: some turns of phrase are refused, each with
    what to say instead
  - a library whose manifest says `test = false`, so that no empty test program is built of it, has
    no unit tests

Example:
  cargo xtask tidy";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("tidy", arguments)?;
    let root = workspace::root();
    // What git tracks or would track: build folders and the like are not ours to judge.
    let listing = process::capture(Command::new("git").current_dir(&root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut faults = Vec::new();
    let mut untested = Vec::new();
    for name in listing.lines().filter(|it| it.ends_with("/Cargo.toml")) {
        let text = fs::read_to_string(root.join(name)).context(|| format!("cannot read {name}"))?;
        if text.contains("[lib]\ntest = false\n") {
            untested.push(name.replace("Cargo.toml", "src/"));
        }
    }
    for name in listing.lines() {
        let path = root.join(name);
        if is_ours(&path) && path.is_file() {
            let text = fs::read_to_string(&path).context(|| format!("cannot read {name}"))?;
            faults.extend(faults_in(Path::new(name), &text));
            if name.ends_with(".md") && !name.starts_with("fixtures/models/") {
                faults.extend(links::faults(&root, name, &text));
            }
            if untested.iter().any(|it| name.starts_with(it)) && text.contains("#[cfg(test)]") {
                faults.push(format!("{name}: a unit test that `test = false` keeps from running"));
            }
        }
        if name.starts_with("crates/") && name.ends_with("/Cargo.toml") {
            let readme = path.with_file_name("README.md");
            if !readme.is_file() {
                faults.push(format!("{name}: no README.md beside it"));
            }
        }
    }
    let pages = listing.lines().filter_map(|it| it.strip_prefix("docs/"));
    faults.extend(missing_chapters(&root, pages)?);
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("not tidy:\n{}", faults.join("\n"))))
}

/// The pages that the book's table of contents does not name.
fn missing_chapters<'p>(root: &Path, pages: impl Iterator<Item = &'p str>) -> Result<Vec<String>> {
    let summary = fs::read_to_string(root.join("docs/SUMMARY.md"))
        .context(|| "cannot read docs/SUMMARY.md")?;
    let missing = pages.filter(|it| it.ends_with(".md") && *it != "SUMMARY.md");
    let missing = missing.filter(|it| !summary.contains(&format!("({it})")));
    Ok(missing.map(|it| format!("docs/{it}: not in docs/SUMMARY.md")).collect())
}

/// Text that people here write, as opposed to recorded data.
fn is_ours(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("rs" | "md" | "toml" | "py" | "yml" | "cpp" | "h"))
}

/// What is wrong with one file.
fn faults_in(name: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let is_module = name.extension().is_some_and(|extension| extension == "rs");
    // A crate may open with its README instead.
    if is_module && !text.starts_with("//!") && !text.starts_with("#![doc = include_str!") {
        faults.push(format!("{}:1: does not open with `//!`", name.display()));
    }
    let is_markdown = name.extension().is_some_and(|extension| extension == "md");
    let turns = match () {
        // The list itself, and what a model was taught.
        () if name.ends_with("xtask/src/prose.rs") || name.iter().any(|it| it == "bundled") => {
            Vec::new()
        }
        () if is_module => prose::faults_in_rust(text),
        () if is_markdown => prose::faults_in_markdown(text),
        () => Vec::new(),
    };
    faults.extend(turns.into_iter().map(|(line, it)| format!("{}:{line}: {it}", name.display())));
    for (index, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            faults.push(format!("{}:{}: ends in a blank", name.display(), index + 1));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_without_its_opening_comment_is_a_fault() {
        assert_eq!(faults_in(Path::new("a.rs"), "//! What it is.\n"), Vec::<String>::new());
        let readme = "#![doc = include_str!(\"../README.md\")]\n";
        assert_eq!(faults_in(Path::new("lib.rs"), readme), Vec::<String>::new());
        assert_eq!(faults_in(Path::new("a.rs"), "fn f() {}\n").len(), 1);
        assert_eq!(faults_in(Path::new("a.md"), "Text\n"), Vec::<String>::new());
    }

    #[test]
    fn a_refused_turn_of_phrase_is_a_fault_with_its_line() {
        // In two parts, or this would be a fault itself.
        let turn = ["an", "ew"].concat();
        let text = format!("//! What it is.\n\n/// Starts\n/// {turn}.\nfn f() {{}}\n");
        let faults = faults_in(Path::new("a.rs"), &text);
        assert_eq!(faults, [format!("a.rs:4: `{turn}`: say `again`")]);
        assert_eq!(faults_in(Path::new("xtask/src/prose.rs"), &text), Vec::<String>::new());
    }

    #[test]
    fn a_trailing_blank_is_a_fault_with_its_line() {
        let faults = faults_in(Path::new("a.md"), "one\ntwo \nthree\t\n");
        assert_eq!(faults, ["a.md:2: ends in a blank", "a.md:3: ends in a blank"]);
    }
}
