//! What the types promise, and what the documentation says of the modes.

use std::path::Path;

use mlx_genkit::{Abilities, Generation, Model, Piece, Request};

#[test]
fn models_and_requests_cross_threads() {
    fn crosses<T: Send>() {}
    crosses::<Model>();
    crosses::<Request<'static>>();
    crosses::<Generation>();
    crosses::<Piece>();
}

/// Refusals come from a table, and the README shows it.
#[test]
fn the_readme_shows_what_each_mode_can_do() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let table = Abilities::table();
    assert!(readme.contains(&table), "the README should have this table:\n{table}");
}
