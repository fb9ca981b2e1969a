//! The Rust declarations of the native library, made from its headers: mlx-c's as mlx-sys's own build
//! script makes them, and those of our operations beside them.
//!
//! bindgen learns where libclang is from the environment alone, so this program starts itself once
//! more with the variable set, rather than changing its own environment, which is unsafe.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::paths::{OUR_SOURCES, files_with_extension, utf8};
use super::wheels::Wheels;
use crate::failure::{Context, Failure, Result};
use crate::{process, workspace};

/// The inner call's name on the command line; not for users.
pub(crate) const INNER: &str = "generate-bindings";

/// The file of mlx-c's declarations, under the name that mlx-sys includes.
const OF_MLXC: &str = "bindings.rs";
/// The file of our own operations' declarations.
pub(super) const OF_OURS: &str = "native_ops.rs";

/// mlx-c's 16-bit types in Rust. The second is an alias, because mlx-rs reads it as a plain integer.
const HALF_TYPES: &str = "\
/// The bits of an IEEE half-precision number.
#[repr(transparent)]
#[derive(Debug, Default, Copy, Clone)]
pub struct float16_t(pub u16);

/// The bits of a bfloat16 number.
pub type bfloat16_t = u16;
";

/// Writes the declarations into a folder.
pub(super) fn write(sources: &Path, wheels: &Wheels, folder: &Path) -> Result<()> {
    let program = std::env::current_exe().context(|| "cannot find this program")?;
    process::capture(
        Command::new(program)
            .env("LIBCLANG_PATH", wheels.libclang())
            .arg(INNER)
            .arg(sources)
            .arg(folder),
    )?;
    Ok(())
}

/// The inner call: `generate-bindings <mlx-c sources> <folder to write into>`.
pub(crate) fn generate(arguments: &[String]) -> Result<()> {
    let [sources, folder] = arguments else {
        return Err(Failure::usage(format!("usage: {INNER} SOURCES FOLDER")));
    };
    let (sources, folder) = (Path::new(sources), Path::new(folder));
    let ours = workspace::root().join(OUR_SOURCES);

    let headers = files_with_extension(&sources.join("mlx/c"), "h")?;
    let names: Vec<&Path> =
        headers.iter().map(|header| header.strip_prefix(sources).unwrap_or(header)).collect();
    let mlxc = builder(sources, &ours, &names)?
        // As mlx-sys asks for; newer targets write declarations that its edition may refuse.
        .rust_target("1.73.0".parse().context(|| "unknown Rust version")?)
        .blocklist_function("malloc")
        .blocklist_function("realloc")
        .blocklist_type("float16_t")
        .blocklist_type("bfloat16_t")
        .raw_line(HALF_TYPES);
    save(mlxc, &folder.join(OF_MLXC))?;

    let operations = builder(sources, &ours, &[Path::new("mlxgk.h")])?
        .rust_target("1.85.0".parse().context(|| "unknown Rust version")?)
        .allowlist_function("mlxgk_.*")
        // Theirs are mlx-sys's types.
        .allowlist_recursively(false);
    save(operations, &folder.join(OF_OURS))
}

/// Reads the headers, which are found in either folder.
fn builder(mlxc: &Path, ours: &Path, headers: &[&Path]) -> Result<bindgen::Builder> {
    // The libclang package brings no headers of its own; gcc's `stddef.h` and friends serve.
    let compiler_headers = process::capture(Command::new("g++").arg("-print-file-name=include"))?;
    // One text that includes the rest, rather than one `-include` each: the paths in those are read
    // as C strings, and the path of a checkout may hold anything.
    let mut text = String::from("#include \"shim/half_types.h\"\n");
    for header in headers {
        text.push_str(&format!("#include \"{}\"\n", utf8(header)?));
    }
    Ok(bindgen::Builder::default()
        .clang_arg(format!("-I{}", utf8(mlxc)?))
        .clang_arg(format!("-I{}", utf8(ours)?))
        .clang_args(["-isystem", compiler_headers.trim()])
        .header_contents("all.h", &text))
}

fn save(builder: bindgen::Builder, file: &Path) -> Result<()> {
    let text = builder.generate().context(|| "cannot read the headers")?.to_string();
    fs::write(file, text).context(|| format!("cannot write {}", file.display()))
}
