//! `cargo xtask setup`: makes MLX linkable, and is done at once when it already is.
//!
//! On a Mac there is nothing to make: mlx-sys builds MLX itself, and only its tools are checked. On
//! Linux mlx-sys cannot build, so its native library is put together here and handed to cargo in a
//! generated configuration file. docs/native-mlx.md tells the whole story.

#[cfg(target_os = "linux")]
mod backend;
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

use crate::cli;
use crate::failure::Result;

pub(crate) const HELP: &str = "\
Makes MLX ready to be linked; every other command does this first.

Usage: cargo xtask setup [--cpu | --cuda]

Linux   Fetches pinned builds of MLX and OpenBLAS, compiles MLX's C interface with g++, and tells
        cargo where they lie. Needs g++, python3 with pip, and the network; a minute or two the
        first time, nothing afterwards. All of it goes into build/, which `cargo clean` leaves.
        --cuda takes MLX's build for NVIDIA's GPUs (CUDA 13) and the libraries that it needs, 1.5 GB;
        NVIDIA's driver has to be installed. --cpu goes back. Without either, the last choice stands.
macOS   Checks that Xcode's tools and cmake are there. Cargo builds MLX itself, with Metal.

After it, plain `cargo build`, `cargo test` and `cargo run -p mlxgk` work.

Examples:
  cargo xtask setup
  cargo xtask setup --cuda
  cargo xtask setup && cargo test -p mlxgk-kv-cache";

#[cfg(target_os = "linux")]
pub(crate) use self::bindings::{INNER, generate as inner};
#[cfg(target_os = "linux")]
pub(crate) use self::linux::sanitized;

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (flag, rest) = match arguments.split_first() {
        Some((flag, rest)) if flag == "--cpu" || flag == "--cuda" => (Some(&**flag), rest),
        _ => (None, arguments),
    };
    cli::no_arguments("setup", rest)?;
    let made = match flag {
        None => ensure()?,
        Some(flag) => choose(flag == "--cuda")?,
    };
    if !made {
        println!("setup: nothing to do");
    }
    Ok(())
}

/// Makes MLX linkable, as it was chosen before; says whether there was something to do.
#[cfg(target_os = "linux")]
pub(crate) fn ensure() -> Result<bool> {
    linux::ensure(None)
}

/// Checks that cargo can build MLX; there is never something to do.
#[cfg(target_os = "macos")]
pub(crate) fn ensure() -> Result<bool> {
    macos::ensure()
}

/// As [`ensure`], for NVIDIA's GPUs or the CPU.
#[cfg(target_os = "linux")]
fn choose(cuda: bool) -> Result<bool> {
    linux::ensure(Some(if cuda { backend::Backend::Cuda } else { backend::Backend::Cpu }))
}

/// Elsewhere there is nothing to choose from.
#[cfg(not(target_os = "linux"))]
fn choose(_cuda: bool) -> Result<bool> {
    Err(crate::failure::Failure::usage("--cpu and --cuda are for Linux; a Mac's MLX has Metal"))
}

/// MLX is published for no other system.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(crate) fn ensure() -> Result<bool> {
    Err(crate::failure::Failure::usage("MLX runs on macOS and Linux only"))
}

/// The native libraries in a form that can be moved, for archives.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(crate) struct Movable {
    /// The folder that `libmlxc.so` is linked from.
    pub(crate) library: std::path::PathBuf,
    /// Files, and where they belong within an archive.
    pub(crate) files: Vec<(std::path::PathBuf, std::path::PathBuf)>,
    /// Licences of others, and their names in an archive.
    pub(crate) licences: Vec<(std::path::PathBuf, String)>,
    pub(crate) triple: &'static str,
}

/// Makes the native library once more, under its bare name instead of its path, so that a program finds
/// it by a run path of its own, wherever both lie.
#[cfg(target_os = "linux")]
pub(crate) fn movable() -> Result<Movable> {
    use std::fs;

    use crate::failure::{Context, Failure};
    use crate::workspace;

    ensure()?;
    let build = workspace::build();
    if backend::Backend::chosen(&build) == backend::Backend::Cuda {
        let what = "archives hold MLX for the CPU: run `cargo xtask setup --cpu` first";
        return Err(Failure::usage(what));
    }
    let recipe = recipe::Recipe::new(&workspace::root(), backend::Backend::Cpu)?;
    let home = recipe.home(&build);
    let wheels = wheels::Wheels::unpacked(&home);
    let made = build.join("dist/native").join(home.file_name().unwrap_or_default());
    let library = made.join("lib/libmlxc.so");
    if !library.is_file() {
        eprintln!("dist: compiling MLX's C interface under its bare name");
        let unfinished = made.with_extension("tmp");
        fs::create_dir_all(unfinished.join("lib"))
            .context(|| format!("cannot create {}", unfinished.display()))?;
        let sources = mlxc::fetch_sources(&workspace::root(), recipe.triple())?;
        mlxc::build(&sources, &wheels, &unfinished, std::path::Path::new("libmlxc.so"))?;
        fs::rename(&unfinished, &made).context(|| format!("cannot create {}", made.display()))?;
    }
    let folder = home.join(wheels::FOLDER);
    let mut files = vec![(library, "lib/libmlxc.so".into())];
    let mut licences = Vec::new();
    for path in paths::files_below(&folder)? {
        let within = path.strip_prefix(&folder).unwrap_or(&path).to_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains(".so") {
            files.push((path.clone(), std::path::Path::new(wheels::FOLDER).join(within)));
        } else if name.to_uppercase().starts_with("LICEN") {
            let package = within.iter().next().unwrap_or_default().to_string_lossy();
            // libclang is not in the archive.
            if !package.starts_with("libclang") {
                licences.push((path.clone(), format!("{}.txt", package.replace(".dist-info", ""))));
            }
        }
    }
    let mlxc = mlxc::fetch_sources(&workspace::root(), recipe.triple())?.join("LICENSE");
    if mlxc.is_file() {
        licences.push((mlxc, "mlx-c.txt".into()));
    }
    let library = made.join("lib");
    Ok(Movable { library, files, licences, triple: recipe.triple() })
}
