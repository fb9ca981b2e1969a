//! Asks whether the native library that mlx-sys links brings this crate's operations.
//!
//! `cargo xtask setup` says so in the table that overrides mlx-sys's build script: the key
//! `native_ops` names the file that declares them. Cargo hands it to this script, since the crate
//! depends on mlx-sys. Without the key the crate builds as well, and has no operations; nor has it with
//! a library that an older checkout made, which lacks some of those in `cpp/mlxgk.h`.

use std::fs;

const HEADER: &str = "cpp/mlxgk.h";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(mlxgk_native_ops)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={HEADER}");
    let Ok(declarations) = std::env::var("DEP_MLX_NATIVE_OPS") else { return };
    println!("cargo::rerun-if-changed={declarations}");
    let [header, declared] =
        [HEADER, &declarations].map(|it| fs::read_to_string(it).unwrap_or_default());
    let declared: Vec<&str> = operations(&declared).collect();
    if let Some(missing) = operations(&header).find(|it| !declared.contains(it)) {
        println!(
            "cargo::warning=the native library has no operation {missing}, so none is used and MLX's \
             slower ones are: run `cargo xtask setup`"
        );
        return;
    }
    println!("cargo::rustc-cfg=mlxgk_native_ops");
    println!("cargo::rustc-env=MLXGK_NATIVE_OPS={declarations}");
}

/// The functions that a text declares.
fn operations(text: &str) -> impl Iterator<Item = &str> {
    let names = text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
    names.filter(|it| it.starts_with("mlxgk_"))
}
