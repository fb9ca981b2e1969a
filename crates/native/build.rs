//! Asks whether the native library that mlx-sys links brings this crate's operations.
//!
//! `cargo xtask setup` says so in the table that overrides mlx-sys's build script: the key
//! `native_ops` names the file that declares them. Cargo hands it to this script, since the crate
//! depends on mlx-sys. Without the key the crate builds as well, and has no operations.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(mlxgk_native_ops)");
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(declarations) = std::env::var("DEP_MLX_NATIVE_OPS") {
        println!("cargo::rustc-cfg=mlxgk_native_ops");
        println!("cargo::rustc-env=MLXGK_NATIVE_OPS={declarations}");
    }
}
