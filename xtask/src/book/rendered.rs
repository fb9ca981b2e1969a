//! What is wrong with the rendered book: links and images that lead nowhere, and Markdown that was left as
//! it stood. mdbook itself complains of neither.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Context, Result};

/// The pages of mdbook's own, whose addresses hold in other places.
const NOT_PAGES: [&str; 2] = ["404.html", "toc.html"];

/// Markup that a reader should not see outside of code.
const MARKUP: [&str; 3] = ["**", "](", "```"];

/// The faults of the book in this folder, each with its page.
pub(super) fn faults(book: &Path) -> Result<Vec<String>> {
    let mut pages = BTreeMap::new();
    read_pages(book, &mut pages)?;
    let mut faults = Vec::new();
    for (path, html) in &pages {
        let name = path.strip_prefix(book).unwrap_or(path).display();
        for target in values(html, &[" href=\"", " src=\""]) {
            if let Some(fault) = fault_of_link(path, target, &pages) {
                faults.push(format!("{name}: {target} {fault}"));
            }
        }
        let text = text(html);
        faults.extend(
            MARKUP
                .iter()
                .filter(|it| text.contains(**it))
                .map(|it| format!("{name}: shows `{it}`")),
        );
    }
    Ok(faults)
}

fn read_pages(folder: &Path, pages: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let cannot = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).context(cannot)? {
        let path = entry.context(cannot)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            read_pages(&path, pages)?;
        } else if name.ends_with(".html") && !NOT_PAGES.contains(&&*name) {
            let html =
                fs::read_to_string(&path).context(|| format!("cannot read {}", path.display()))?;
            pages.insert(path, html);
        }
    }
    Ok(())
}

/// What is wrong with a link on the page at `path`; addresses of elsewhere are not looked up.
fn fault_of_link(
    path: &Path,
    target: &str,
    pages: &BTreeMap<PathBuf, String>,
) -> Option<&'static str> {
    if target.contains(':') {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let to = if file.is_empty() {
        path.to_owned()
    } else {
        let there = fs::canonicalize(path.with_file_name("").join(file));
        let Ok(there) = there else { return Some("leads nowhere") };
        there
    };
    let html = pages.iter().find(|(path, _)| fs::canonicalize(path).is_ok_and(|it| it == to));
    match html {
        Some((_, html))
            if !anchor.is_empty() && !values(html, &[" id=\""]).any(|it| it == anchor) =>
        {
            Some("names a heading that is not there")
        }
        _ => None,
    }
}

/// The values of these attributes.
fn values<'h>(html: &'h str, attributes: &'h [&str]) -> impl Iterator<Item = &'h str> {
    let all = attributes.iter().flat_map(|it| html.split(it).skip(1));
    all.filter_map(|it| it.split_once('"').map(|it| it.0))
}

/// What a reader sees of a page's own part, without code.
fn text(html: &str) -> String {
    let main = html.split_once("<main>").map_or("", |it| it.1);
    let mut rest = main.split_once("</main>").map_or(main, |it| it.0);
    let mut text = String::new();
    while let Some((before, tag)) = rest.split_once('<') {
        text += before;
        let end = if tag.starts_with("code") { "</code>" } else { ">" };
        rest = tag.split_once(end).map_or("", |it| it.1);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_would_stumble_on_is_found() {
        let book = tempfile::tempdir().unwrap();
        let write = |name: &str, main: &str| {
            let path = book.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("<html><main>{main}</main></html>")).unwrap();
        };
        write("one.html", "<h2 id=\"here\">Here</h2><code>**x**</code> <img src=\"a.svg\">");
        write(
            "deep/two.html",
            "<a href=\"../one.html#here\">1</a> <a href=\"https://x.org\">2</a>",
        );
        fs::write(book.path().join("a.svg"), "<svg/>").unwrap();
        assert_eq!(faults(book.path()).unwrap(), Vec::<String>::new());

        write("three.html", "<a href=\"one.html#there\">1</a> <img src=\"b.svg\"> **bold** [a](b)");
        assert_eq!(
            faults(book.path()).unwrap(),
            [
                "three.html: one.html#there names a heading that is not there",
                "three.html: b.svg leads nowhere",
                "three.html: shows `**`",
                "three.html: shows `](`",
            ]
        );
    }
}
