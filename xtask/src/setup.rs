//! `cargo xtask setup`: makes MLX linkable, and is done at once when it already is.
//!
//! On a Mac there is nothing to make: mlx-sys builds MLX itself, and only its tools are checked. On
//! Linux mlx-sys cannot build, so its native library is put together here and handed to cargo in a
//! generated configuration file. docs/native-mlx.md tells the whole story.

#[cfg(target_os = "linux")]
mod bindings;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "linux")]
mod mlxc;
#[cfg(target_os = "linux")]
mod paths;
#[cfg(target_os = "linux")]
mod recipe;
mod tools;
#[cfg(target_os = "linux")]
mod wheels;

#[cfg(target_os = "linux")]
use self::linux as platform;
#[cfg(target_os = "macos")]
use self::macos as platform;

use crate::cli;
use crate::failure::Result;

pub(crate) const HELP: &str = "\
Makes MLX ready to be linked; every other command does this first.

Usage: cargo xtask setup

Linux   Fetches pinned builds of MLX and OpenBLAS, compiles MLX's C interface with g++, and tells
        cargo where they lie. Needs g++, python3 with pip, and the network; a minute or two the
        first time, nothing afterwards. All of it goes into build/, which `cargo clean` leaves.
macOS   Checks that Xcode's tools and cmake are there. Cargo builds MLX itself, with Metal.

After it, plain `cargo build`, `cargo test` and `cargo run -p mlxgk` work.

Examples:
  cargo xtask setup
  cargo xtask setup && cargo test -p mlxgk-kv-cache";

#[cfg(target_os = "linux")]
pub(crate) use self::bindings::{INNER, generate as inner};
#[cfg(target_os = "linux")]
pub(crate) use self::linux::sanitized;

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    cli::no_arguments("setup", arguments)?;
    if !ensure()? {
        println!("setup: nothing to do");
    }
    Ok(())
}

/// Makes MLX linkable; says whether there was something to do.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) fn ensure() -> Result<bool> {
    platform::ensure()
}

/// MLX is published for no other system.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(crate) fn ensure() -> Result<bool> {
    Err(crate::failure::Failure::usage("MLX runs on macOS and Linux only"))
}
