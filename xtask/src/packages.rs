//! `cargo xtask packages`: what would be published is whole, and depends on as much as the book says.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::failure::{Context, Failure, Result};
use crate::links::REPOSITORY;
use crate::{cli, process, workspace};

pub(crate) const HELP: &str = "\
Checks every crate that is published: keywords, categories and the like as crates.io takes them, README
and licences in the package, and the number of dependencies that docs/reference/crates.md states.

Usage: cargo xtask packages [--write]

  --write   write the table of docs/reference/crates.md instead of comparing it

It compiles nothing.

Example:
  cargo xtask packages";

const PAGE: &str = "docs/reference/crates.md";

/// What crates.io takes at most, in bytes.
const LARGEST: u64 = 10 << 20;

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let write = match arguments {
        [] => false,
        [only] if only == "--write" => true,
        [first, ..] => return Err(cli::unexpected("packages", first)),
    };
    let packages = workspace::published()?;
    let mut faults = Vec::new();
    for package in &packages {
        faults.extend(faults_of(package)?);
    }
    let path = workspace::root().join(PAGE);
    let page = fs::read_to_string(&path).context(|| format!("cannot read {PAGE}"))?;
    let (before, _) = page
        .split_once("| crate |")
        .ok_or_else(|| Failure::new(format!("{PAGE} has no table that begins with `| crate |`")))?;
    let made = format!("{before}{}", table(&packages)?);
    if write {
        fs::write(&path, made).context(|| format!("cannot write {PAGE}"))?;
    } else if made != page {
        faults.push(format!("{PAGE} is stale: `cargo xtask packages --write` writes it"));
    }
    if faults.is_empty() {
        println!("packages: {} crates can be packaged", packages.len());
        return Ok(());
    }
    Err(Failure::new(format!("not ready to be published:\n{}", faults.join("\n"))))
}

/// What is wrong with one package.
fn faults_of(package: &Value) -> Result<Vec<String>> {
    let name = package["name"].as_str().unwrap_or_default();
    let mut faults: Vec<String> =
        metadata_faults(package).into_iter().map(|it| format!("{name}: {it}")).collect();
    let mut list = process::cargo();
    list.current_dir(workspace::root());
    let listing = process::capture(list.args([
        "package",
        "--list",
        "--allow-dirty",
        "--offline",
        "-p",
        name,
    ]))?;
    for file in ["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        if !listing.lines().any(|it| it == file) {
            faults.push(format!("{name}: the package has no {file}"));
        }
    }
    let manifest = package["manifest_path"].as_str().unwrap_or_default();
    let folder = Path::new(manifest).with_file_name("");
    let bytes: u64 = listing
        .lines()
        .filter_map(|it| fs::metadata(folder.join(it)).ok())
        .map(|it| it.len())
        .sum();
    if bytes > LARGEST {
        faults.push(format!("{name}: the package has {bytes} bytes, and {LARGEST} are allowed"));
    }
    Ok(faults)
}

/// What crates.io would refuse or miss.
fn metadata_faults(package: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for field in ["description", "repository", "license", "readme", "rust_version"] {
        if package[field].as_str().is_none_or(str::is_empty) {
            faults.push(format!("has no `{field}`"));
        }
    }
    let words = |field: &str| -> Vec<String> {
        let list = package[field].as_array();
        list.into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let keywords = words("keywords");
    if keywords.is_empty() || keywords.len() > 5 {
        faults.push(format!("has {} keywords; 1 to 5 are allowed", keywords.len()));
    }
    for word in keywords {
        let fine = |it: char| it.is_ascii_alphanumeric() || "-_+".contains(it);
        if word.len() > 20 || !word.chars().all(fine) {
            faults.push(format!("`{word}` is not a keyword that crates.io takes"));
        }
    }
    let categories = words("categories");
    if categories.is_empty() || categories.len() > 5 {
        faults.push(format!("has {} categories; 1 to 5 are allowed", categories.len()));
    }
    faults
}

/// The table of the page.
fn table(packages: &[Value]) -> Result<String> {
    let mut table = String::from(
        "| crate | for | MLX | dependencies | without default features | Rust |\n\
         |---|---|---|---|---|---|\n",
    );
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let text = |field: &str| package[field].as_str().unwrap_or_default();
        let (purpose, rust) = (text("description"), text("rust_version"));
        let all = workspace::dependencies(name, &[])?;
        let bare = workspace::dependencies(name, &["--no-default-features"])?;
        let mlx = if all.iter().any(|it| it.starts_with("mlx-rs ")) { "yes" } else { "no" };
        let (all, bare) = (all.len(), bare.len());
        let manifest = Path::new(text("manifest_path")).with_file_name("");
        let folder =
            manifest.strip_prefix(workspace::root()).unwrap_or(&manifest).display().to_string();
        let folder = folder.trim_end_matches('/');
        table += &format!(
            "| [`{name}`]({REPOSITORY}/tree/main/{folder}) | {purpose} | {mlx} | {all} | {bare} | {rust} |\n"
        );
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_crates_io_would_refuse_is_a_fault() {
        let good = json!({
            "description": "What it is", "repository": "https://example.org", "license": "MIT",
            "readme": "README.md", "rust_version": "1.85", "keywords": ["mlx", "json-schema"],
            "categories": ["science"],
        });
        assert_eq!(metadata_faults(&good), Vec::<String>::new());
        for (field, bad) in [
            ("description", json!("")),
            ("license", json!(null)),
            ("rust_version", json!(null)),
            ("keywords", json!([])),
            ("keywords", json!(["a", "b", "c", "d", "e", "f"])),
            ("keywords", json!(["two words"])),
            ("keywords", json!(["a-word-that-is-much-too-long"])),
            ("categories", json!([])),
        ] {
            let mut package = good.clone();
            package[field] = bad;
            assert_eq!(metadata_faults(&package).len(), 1, "{package}");
        }
    }
}
