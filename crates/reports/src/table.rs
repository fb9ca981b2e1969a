//! A table of texts.

use std::fmt;

use crate::escaped;

/// A table: a head, and rows of as many cells.
///
/// ```
/// use mlxgk_reports::Table;
///
/// let rows = vec![vec!["greedy".to_owned(), "8".to_owned()], vec!["beams".to_owned()]];
/// let table = Table::new(["mode", "tokens"], rows);
/// assert_eq!(table.to_string(), "mode    tokens\ngreedy       8\nbeams");
/// assert!(table.html().contains("<tr><td>beams</td><td></td></tr>"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table. A row that is shorter than the head is filled up with empty cells, and a longer one is cut.
    pub fn new(head: impl IntoIterator<Item = impl Into<String>>, rows: Vec<Vec<String>>) -> Self {
        let head: Vec<String> = head.into_iter().map(Into::into).collect();
        let fit = |mut row: Vec<String>| {
            row.resize(head.len(), String::new());
            row
        };
        let rows = rows.into_iter().map(fit).collect();
        Self { head, rows }
    }

    /// The table as HTML.
    pub fn html(&self) -> String {
        let line = |cells: &[String], tag: &str| {
            let cell = |it: &String| format!("<{tag}>{}</{tag}>", escaped(it));
            format!("<tr>{}</tr>", cells.iter().map(cell).collect::<String>())
        };
        let rows: String = self.rows.iter().map(|it| line(it, "td")).collect();
        format!("<table>{}{rows}</table>", line(&self.head, "th"))
    }
}

/// The table for a terminal, columns aligned: the first to the left, the others to the right.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |at: usize| lines().map(|it| it[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        for (index, row) in lines().enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            f.write_str(line.trim_end())?;
            if index < self.rows.len() {
                f.write_str("\n")?;
            }
        }
        Ok(())
    }
}
