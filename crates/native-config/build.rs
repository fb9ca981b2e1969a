//! Refuses to build for Linux without the configuration that `cargo xtask setup` writes, which replaces
//! this script (`links` in Cargo.toml).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // docs.rs makes pages without linking anything.
    let linux = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|it| it == "linux");
    if linux && env::var_os("DOCS_RS").is_none() {
        println!(
            "cargo::error=on Linux cargo has to be told where MLX is: run `cargo xtask setup` in a checkout of \
             mlx-genkit, and put `include = [{{ path = \"/checkout/build/mlx-native.toml\" }}]`, with that checkout's \
             path, into .cargo/config.toml beside your program (cargo 1.95 or newer; see docs/install.md)"
        );
    }
}
