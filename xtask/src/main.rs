//! The project's chores (see matklad's cargo-xtask): `cargo xtask help`.

fn main() {}
