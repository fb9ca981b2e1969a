//! The project's chores as plain Rust (the cargo-xtask pattern): `cargo xtask help`.
//!
//! This package must build before MLX does, since `setup` is what makes MLX linkable on Linux. So it
//! depends on no MLX crate; what needs one (`run`, `test`, `parity`) is started as a second cargo.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line speaks on stdout and stderr"
)]

mod bench;
mod book;
mod check;
mod check_adapters;
mod check_convert;
mod cli;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod dist;
mod examples;
mod failure;
mod features;
mod fuzz;
mod links;
mod mac_check;
mod packages;
mod parity;
mod process;
mod prose;
mod python;
mod record;
mod release;
mod run;
#[cfg(target_os = "linux")]
mod sanitize;
mod setup;
mod test;
mod tidy;
mod tokenizers;
mod train_bundled;
mod workspace;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::dispatch(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                eprintln!("error: {message}");
            }
            ExitCode::from(failure.status())
        }
    }
}
