//! The links of the project's pages: whether what they name is there.
//!
//! A page is read in several places. A crate's README is shown on crates.io and docs.rs, where only whole
//! addresses hold; the pages in `docs` are a book, whose links must stay within it or be whole addresses,
//! too. So an address in this repository is looked up in the checkout, like a relative path.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Where the repository is shown; `Cargo.toml` says the same.
pub(crate) const REPOSITORY: &str = "https://github.com/mlx-genkit/mlx-genkit";

/// What is wrong with the links of the page `name`, a path within `root`.
pub(crate) fn faults(root: &Path, name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (line, target) in links(text) {
        if let Err(fault) = check(root, name, text, target) {
            faults.push(format!("{name}:{line}: the link {target} {fault}"));
        }
    }
    faults
}

/// The inline links of a page outside of code, with their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    for (line, prose) in prose(text) {
        // Every other part is code.
        for part in prose.split('`').step_by(2) {
            let targets = part.split("](").skip(1).filter_map(|it| it.split_once(')'));
            links.extend(targets.map(|(target, _)| (line, target)));
        }
    }
    links
}

/// The lines outside of fenced code, counted from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((index + 1, line))
    })
}

fn check(root: &Path, name: &str, text: &str, target: &str) -> Result<(), &'static str> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    if path.is_empty() {
        return has_anchor(text, anchor);
    }
    let within = if let Some(rest) = path.strip_prefix(REPOSITORY) {
        let kinds = ["/blob/main/", "/tree/main/"];
        let Some(within) = kinds.iter().find_map(|kind| rest.strip_prefix(kind)) else {
            return Ok(());
        };
        PathBuf::from(within)
    } else if path.contains("://") {
        return Ok(());
    } else if name.starts_with("crates/") && name.matches('/').count() == 2 {
        return Err("is relative, which holds neither on crates.io nor on docs.rs");
    } else {
        let folder = Path::new(name).parent().unwrap_or(Path::new(""));
        let within = normal(&folder.join(path)).ok_or("leaves the repository")?;
        if name.starts_with("docs/") && !within.starts_with("docs") {
            return Err("leaves the book, so it must be a whole address");
        }
        within
    };
    let path = root.join(within);
    if !path.exists() {
        return Err("leads nowhere");
    }
    if anchor.is_empty() {
        return Ok(());
    }
    has_anchor(&fs::read_to_string(path).unwrap_or_default(), anchor)
}

/// A relative path without `.` and `..`; `None` where it would leave its root.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir if !normal.pop() => return None,
            _ => {}
        }
    }
    Some(normal)
}

fn has_anchor(text: &str, anchor: &str) -> Result<(), &'static str> {
    let mut headings = prose(text).filter_map(|(_, line)| line.strip_prefix('#'));
    let found = headings.any(|it| slug(it.trim_start_matches('#').trim()) == anchor);
    if found { Ok(()) } else { Err("names a heading that is not there") }
}

/// A heading's name in addresses, as GitHub and mdBook make it.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|it| it.is_alphanumeric() || [' ', '-', '_'].contains(it));
    kept.flat_map(char::to_lowercase).map(|it| if it == ' ' { '-' } else { it }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_looked_up() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("docs/one.md", "# One page\n\n```sh\n# no heading\n```\n## `mlxgk` and more\n"),
            ("crates/a/README.md", "# a\n"),
        ] {
            fs::create_dir_all(root.path().join(name).parent().unwrap()).unwrap();
            fs::write(root.path().join(name), text).unwrap();
        }
        let count = |name: &str, link: &str| {
            faults(root.path(), name, &format!("# Here\nsee [it]({link})\n")).len()
        };
        for (name, good) in [
            ("README.md", "docs/one.md"),
            ("README.md", "docs/one.md#mlxgk-and-more"),
            ("README.md", "https://example.org/nowhere"),
            ("docs/two.md", "one.md#one-page"),
            ("docs/two.md", "#here"),
            ("docs/deep/three.md", "../one.md"),
            (
                "docs/two.md",
                "https://github.com/mlx-genkit/mlx-genkit/blob/main/crates/a/README.md",
            ),
            ("crates/a/README.md", "https://github.com/mlx-genkit/mlx-genkit/tree/main/docs"),
            ("crates/a/README.md", "#here"),
        ] {
            assert_eq!(count(name, good), 0, "{name}: {good}");
        }
        for (name, bad) in [
            ("README.md", "docs/other.md"),
            ("README.md", "docs/one.md#no-heading"),
            ("docs/two.md", "../crates/a/README.md"),
            ("docs/two.md", "../../one.md"),
            ("docs/two.md", "#there"),
            ("crates/a/README.md", "../../docs/one.md"),
            ("crates/a/README.md", "https://github.com/mlx-genkit/mlx-genkit/blob/main/docs/no.md"),
        ] {
            assert_eq!(count(name, bad), 1, "{name}: {bad}");
        }
    }

    #[test]
    fn code_holds_no_links() {
        let text = "`[a](b)` and [c](d)\n```text\n[e](f)\n```\n[g](h), [i](j)\n";
        assert_eq!(links(text), [(1, "d"), (5, "h"), (5, "j")]);
    }
}
