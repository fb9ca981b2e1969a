//! `cargo xtask book`: the pages of docs/ as a book, and the parts of them that are made.

mod rendered;

use crate::failure::{Failure, Result};
use crate::{cli, packages, process, setup, workspace};

pub(crate) const HELP: &str = "\
Builds the book of docs/ with mdbook, into build/book, and checks the HTML: links, images, and Markdown that
was not rendered.

Usage: cargo xtask book [--refresh]

  --refresh   write again what the pages show of the program and the code, where it has changed (the
              outputs of commands, tables of fields, tolerances and crates), and build nothing.
              The tests compare the same.

Examples:
  cargo xtask book
  cargo xtask book --refresh && git diff docs";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => build(),
        [only] if only == "--refresh" => refresh(),
        [first, ..] => Err(cli::unexpected("book", first)),
    }
}

fn build() -> Result<()> {
    if !process::works("mdbook", &["--version"]) {
        return Err(Failure::usage("mdbook is missing: cargo install mdbook"));
    }
    let mut mdbook = std::process::Command::new("mdbook");
    process::show(mdbook.arg("build").arg(workspace::root().join("docs")))?;
    let faults = rendered::faults(&workspace::build().join("book"))?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("the book has faults:\n{}", faults.join("\n"))))
}

fn refresh() -> Result<()> {
    setup::ensure()?;
    packages::run(&["--write".to_owned()])?;
    let mut test = process::cargo();
    test.current_dir(workspace::root()).env("MLXGK_REFRESH", "1");
    // Of two crates, each of which has a test of this name.
    process::show(test.args(["test", "--workspace", "--exclude", "xtask", "--test", "pages"]))
}
