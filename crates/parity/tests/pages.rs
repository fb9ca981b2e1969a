//! The pages of the book that are made from the code: the fields of the config, and the tolerances.
//!
//! With `MLXGK_REFRESH=1` (`cargo xtask book --refresh`) they are written; otherwise a page that is stale
//! is a failure.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::fmt::Write;
use std::fs;
use std::path::Path;

use mlxgk_generation_config::GenerationConfig;
use mlxgk_parity::AREAS;

/// Fields that transformers has; those after them are other engines'.
const OF_HUGGING_FACE: usize = 73;

fn compare(page: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(page);
    if std::env::var_os("MLXGK_REFRESH").is_some() {
        fs::write(&path, made).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == made,
        "docs/reference/{page} is stale: `cargo xtask book --refresh` writes it"
    );
}

/// A field's documentation as a cell of a table: links within rustdoc become code.
fn cell(docs: &str) -> String {
    let text = docs.split_whitespace().collect::<Vec<_>>().join(" ");
    // [`Type`](crate::Type) and [`Type`] are addresses of rustdoc's.
    let mut cell = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("[`") {
        let (code, after) = after.split_once("`]").unwrap();
        let code = code.rsplit("::").next().unwrap();
        write!(cell, "{before}`{code}`").unwrap();
        let target = after.strip_prefix('(').and_then(|it| it.split_once(')'));
        rest = target.map_or(after, |(_, after)| after);
    }
    cell += rest;
    cell.replace('|', "\\|")
}

#[test]
fn the_table_of_fields_is_the_configs() {
    let mut page = String::from(
        "# Config fields\n\n\
         Every field of the generation config: on the command line a flag in kebab-case \
         (`--no-repeat-ngram-size 2`) or `--set FIELD=JSON`, in a file under its own name, in Rust a \
         member of `GenerationConfig`.\nThis page is made from the documentation of that struct.\n",
    );
    for (heading, fields) in [
        ("Hugging Face's", &GenerationConfig::FIELDS[..OF_HUGGING_FACE]),
        ("Of other engines", &GenerationConfig::FIELDS[OF_HUGGING_FACE..]),
    ] {
        write!(page, "\n## {heading}\n\n| field | type | range | is |\n|---|---|---|---|\n")
            .unwrap();
        for field in fields {
            let docs = cell(GenerationConfig::describe(field).unwrap());
            let kind = GenerationConfig::type_of(field).unwrap().replace('|', "\\|");
            let range = GenerationConfig::range_of(field).unwrap_or_default();
            writeln!(page, "| `{field}` | `{kind}` | {range} | {docs} |").unwrap();
        }
    }
    compare("fields.md", &page);
}

#[test]
fn the_table_of_tolerances_is_what_is_checked() {
    let mut page = String::from(
        "# Tolerances\n\n\
         How far numbers may be off in each area of the goldens; where there are none, only equality \
         counts. Tokens are always compared exactly.\n\
         This page is made from the constants that the areas compare by. What each is about stands \
         in [the ledger](../parity.md).\n\n\
         | area | uses MLX | tolerances |\n|---|---|---|\n",
    );
    for area in AREAS {
        let numbers: Vec<String> = area.tolerances.iter().map(|it| format!("{it:e}")).collect();
        let numbers = if numbers.is_empty() { "exact".to_owned() } else { numbers.join(", ") };
        let uses_mlx = if area.on_mlx { "yes" } else { "no" };
        writeln!(page, "| `{}` | {uses_mlx} | {numbers} |", area.name).unwrap();
    }
    compare("tolerances.md", &page);
}
