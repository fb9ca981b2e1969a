//! The Rust declarations of mlx-c, made from its headers as mlx-sys's own build script makes them.
//!
//! bindgen learns where libclang is from the environment alone, so this program starts itself once
//! more with the variable set, rather than changing its own environment, which is unsafe.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::linux::{files_with_extension, utf8};
use super::wheels::Wheels;
use crate::failure::{Context, Failure, Result};
use crate::process;

/// The inner call's name on the command line; not for users.
pub(crate) const INNER: &str = "generate-bindings";

/// Writes `bindings.rs`, which mlx-sys includes.
pub(super) fn write(sources: &Path, wheels: &Wheels, file: &Path) -> Result<()> {
    let program = std::env::current_exe().context(|| "cannot find this program")?;
    process::capture(
        Command::new(program)
            .env("LIBCLANG_PATH", wheels.libclang())
            .arg(INNER)
            .arg(sources)
            .arg(file),
    )?;
    Ok(())
}

/// The inner call: `generate-bindings <mlx-c sources> <file to write>`.
pub(crate) fn generate(arguments: &[String]) -> Result<()> {
    let [sources, file] = arguments else {
        return Err(Failure::usage(format!("usage: {INNER} SOURCES FILE")));
    };
    let (sources, file) = (Path::new(sources), Path::new(file));
    // The libclang package brings no headers of its own; gcc's `stddef.h` and friends serve.
    let compiler_headers = process::capture(Command::new("g++").arg("-print-file-name=include"))?;
    // One text that includes the rest, rather than one `-include` each: the paths in those are read
    // as C strings, and the path of a checkout may hold anything.
    let mut headers = include_str!("../../native/half_types.h").to_owned();
    for header in files_with_extension(&sources.join("mlx/c"), "h")? {
        let name = utf8(header.strip_prefix(sources).unwrap_or(&header))?;
        headers.push_str(&format!("#include \"{name}\"\n"));
    }

    let builder = bindgen::Builder::default()
        // As mlx-sys asks for; newer targets write declarations that its edition may refuse.
        .rust_target("1.73.0".parse().context(|| "unknown Rust version")?)
        .clang_arg(format!("-I{}", utf8(sources)?))
        .clang_args(["-isystem", compiler_headers.trim()])
        .header_contents("mlx-c.h", &headers)
        .blocklist_function("malloc")
        .blocklist_function("realloc")
        .blocklist_type("float16_t")
        .blocklist_type("bfloat16_t");
    let mut text = builder.generate().context(|| "cannot read mlx-c's headers")?.to_string();
    text.push_str(include_str!("../../native/half_types.rs"));
    fs::write(file, text).context(|| format!("cannot write {}", file.display()))
}
