//! Linux: puts MLX's native library together from published parts, in `build/mlx/<recipe>/`.
//!
//! The folder is made under another name and renamed when it is complete, so its presence alone says
//! that it is whole, and a file lock keeps two setups from building at once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::backend::{self, Backend};
use super::recipe::{self, Recipe};
use super::tools::{self, Tool};
use super::{bindings, mlxc, wheels};
use crate::failure::{Context, Result};
use crate::workspace;

const TOOLS: &[Tool] = &[
    Tool {
        program: "g++",
        probe: &["-std=c++20", "-fsyntax-only", "-x", "c++", "/dev/null"],
        missing: "g++ 10 or newer is missing: install it (Debian, Ubuntu: `apt install g++`; \
                  Fedora: `dnf install gcc-c++`)",
    },
    Tool {
        program: "python3",
        probe: &["--version"],
        missing: "python3 is missing: install it (Debian, Ubuntu: `apt install python3`; \
                  Fedora: `dnf install python3`)",
    },
    Tool {
        program: "python3",
        probe: &["-m", "pip", "--version"],
        missing: "pip is missing: install it for python3 (Debian, Ubuntu: `apt install \
                  python3-pip`; Fedora: `dnf install python3-pip`)",
    },
];

/// Makes the native library if it is not there, for what is `wanted` or was chosen before; says whether it
/// had to.
pub(super) fn ensure(wanted: Option<Backend>) -> Result<bool> {
    let root = workspace::root();
    let build = workspace::build();
    let recipe = Recipe::new(&root, wanted.unwrap_or_else(|| Backend::chosen(&build)))?;
    if recipe.is_done(&build) {
        return Ok(false);
    }
    tools::require(TOOLS)?;
    fs::create_dir_all(&build).context(|| format!("cannot create {}", build.display()))?;
    let _lock = lock(&build.join("mlx.lock"))?;
    if recipe.is_done(&build) {
        return Ok(false);
    }

    let start = Instant::now();
    eprintln!("setup: making MLX linkable; a minute or two, once");
    let home = recipe.home(&build);
    if !recipe::library(&home).is_file() {
        make(&recipe, &build, &home)?;
    }
    // The configuration comes last: cargo must never be pointed at what is not there.
    write_whole(&recipe::config_file(&build), &recipe.config(&home))?;
    remove_others(&home, recipe.backend());
    eprintln!("setup: done in {:.0} s", start.elapsed().as_secs_f32());
    Ok(true)
}

/// Makes our own operations with a sanitizer, and returns the library to preload.
pub(crate) fn sanitized(sanitizer: &str) -> Result<PathBuf> {
    ensure(None)?;
    let (root, build) = (workspace::root(), workspace::build());
    let recipe = Recipe::new(&root, Backend::chosen(&build))?;
    let sources = mlxc::fetch_sources(&root, recipe.triple())?;
    let wheels = wheels::Wheels::unpacked(&recipe.home(&build));
    let folder = build.join("sanitized").join(sanitizer);
    mlxc::build_sanitized(&sources, &wheels, sanitizer, &folder)
}

/// Builds everything in a temporary folder and gives it its name at the end.
fn make(recipe: &Recipe, build: &Path, home: &Path) -> Result<()> {
    let unfinished = build.join("mlx").join("unfinished.tmp");
    for leftover in [&unfinished, home] {
        if leftover.exists() {
            fs::remove_dir_all(leftover)
                .context(|| format!("cannot remove {}", leftover.display()))?;
        }
    }
    let library_folder = unfinished.join("lib");
    fs::create_dir_all(&library_folder)
        .context(|| format!("cannot create {}", library_folder.display()))?;

    eprintln!("setup: fetching the mlx-sys sources");
    let sources = mlxc::fetch_sources(&workspace::root(), recipe.triple())?;
    eprintln!("setup: fetching {}", recipe.backend().download());
    let wheels = wheels::fetch(&unfinished, recipe.backend())?;
    if recipe.backend() == Backend::Cuda {
        backend::check_libraries(&wheels)?;
    }
    eprintln!("setup: compiling MLX's C interface (about a minute on two cores)");
    let library = recipe::library(home);
    mlxc::build(&sources, &wheels, &unfinished, &library)?;
    eprintln!("setup: writing its Rust declarations");
    bindings::write(&sources, &wheels, &unfinished)?;
    wheels.remove_build_only()?;

    fs::rename(&unfinished, home).context(|| format!("cannot create {}", home.display()))
}

/// Waits until no other setup is at work here. The lock ends with the process at the latest.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("setup: another setup is at work; waiting for it");
        file.lock().context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Writes a file under a temporary name and renames it, so that no one reads half of it.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, path).context(|| format!("cannot write {}", path.display()))
}

/// Removes what earlier recipes made for the same backend. A leftover does no harm, so a failure is only
/// reported.
fn remove_others(home: &Path, backend: Backend) {
    let Some(folder) = home.parent() else { return };
    let is_of = |path: &Path| path.to_string_lossy().ends_with(Backend::Cuda.ending());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_other = |path: &PathBuf| path != home && is_of(path) == (backend == Backend::Cuda);
    for other in entries.map(|entry| entry.path()).filter(is_other) {
        if let Err(error) = fs::remove_dir_all(&other) {
            eprintln!("setup: cannot remove {}: {error}", other.display());
        }
    }
}
