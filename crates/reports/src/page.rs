//! A self-contained HTML page, put together from top to bottom.

use std::fmt;

use crate::Table;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#222}table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .7rem;\
text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}\
figure{display:inline-block;margin:1rem 1rem 0 0}figcaption{font-weight:600}blockquote{color:#444}";

/// An HTML page without scripts, links or files beside it.
///
/// Texts are escaped; [`svg`](Self::svg) and [`html`](Self::html) take markup as it is.
///
/// ```
/// use mlxgk_reports::{Page, Table};
///
/// let mut page = Page::new("Tokens & time");
/// let rows = vec![vec!["llama".to_owned(), "12".to_owned()]];
/// page.heading("Results").table(&Table::new(["model", "tokens"], rows));
/// let html = page.to_string();
/// assert!(html.contains("Tokens &amp; time") && html.contains("<td>llama</td>"));
/// ```
#[derive(Debug, Clone)]
pub struct Page(String);

impl Page {
    /// A page with this title and heading.
    pub fn new(title: &str) -> Self {
        let title = escaped(title);
        Self(format!(
            "<!doctype html><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\
             <h1>{title}</h1>"
        ))
    }

    /// A heading within the page.
    pub fn heading(&mut self, text: &str) -> &mut Self {
        self.html(&format!("<h2>{}</h2>", escaped(text)))
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.html(&format!("<p>{}</p>", escaped(text)))
    }

    /// A quotation under the words that introduce it.
    pub fn quote(&mut self, of: &str, text: &str) -> &mut Self {
        self.text(of).html(&format!("<blockquote>{}</blockquote>", escaped(text)))
    }

    /// A table.
    pub fn table(&mut self, table: &Table) -> &mut Self {
        self.html(&table.html())
    }

    /// A plot of [`lines`](crate::lines) or [`bars`](crate::bars).
    pub fn svg(&mut self, svg: &str) -> &mut Self {
        self.html(svg)
    }

    /// Markup as it is.
    pub fn html(&mut self, markup: &str) -> &mut Self {
        self.0 += markup;
        self
    }
}

/// The page's HTML.
impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is safe inside elements and quoted attributes.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}
