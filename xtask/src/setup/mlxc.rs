//! MLX's C interface (mlx-c), compiled from the sources inside the published mlx-sys package.
//!
//! It becomes a shared library whose own name (SONAME) is its absolute path. The linker copies that
//! name into every binary, so binaries, tests and doc tests find it with no rpath, no linker flag
//! and no environment variable; a flag would be lost as soon as someone sets `RUSTFLAGS`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::paths::{OUR_SOURCES, files_below, files_with_extension};
use super::wheels::{self, Wheels};
use crate::failure::{Context, Failure, Result};
use crate::{process, workspace};

/// The mlx-sys that the pinned MLX build and everything in this folder were made for.
const MLX_SYS: &str = "0.7.0";

/// Asks cargo for mlx-sys, downloading it if need be, and returns the folder of the mlx-c sources.
pub(super) fn fetch_sources(root: &Path, triple: &str) -> Result<PathBuf> {
    let metadata = process::capture(process::cargo().current_dir(root).args([
        "metadata",
        "--format-version=1",
        "--filter-platform",
        triple,
    ]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context(|| "cannot read the output of `cargo metadata`")?;
    let package = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|package| package["name"] == "mlx-sys"))
        .ok_or_else(|| Failure::new("no crate of this workspace depends on mlx-sys"))?;
    let version = package["version"].as_str().unwrap_or_default();
    if version != MLX_SYS {
        return Err(Failure::new(format!(
            "Cargo.lock has mlx-sys {version}, but setup is made for {MLX_SYS}: \
             see \"Upgrading\" in docs/native-mlx.md"
        )));
    }
    let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    Ok(manifest.with_file_name("src").join("mlx-c"))
}

/// A source file, and the name of the object file made from it.
#[derive(Debug)]
struct Unit {
    source: PathBuf,
    object: String,
    ours: bool,
}

/// Everything that is compiled: mlx-c's sources and our own. Objects are named after the whole path,
/// since two folders may hold files of one name.
fn units(mlxc: &Path, ours: &Path) -> Result<Vec<Unit>> {
    let mut units = Vec::new();
    for (folder, files, ours) in [
        (mlxc, files_with_extension(&mlxc.join("mlx/c"), "cpp")?, false),
        (ours, files_below(ours)?, true),
    ] {
        for source in files {
            if source.extension().is_some_and(|extension| extension == "cpp") {
                let within = source.strip_prefix(folder).unwrap_or(&source);
                let name = within.with_extension("o").to_string_lossy().replace('/', "-");
                let object = format!("{}-{name}", if ours { "mlxgk" } else { "mlxc" });
                units.push(Unit { source, object, ours });
            }
        }
    }
    Ok(units)
}

/// The g++ that compiles and links, with all it has to find.
struct Compiler<'a> {
    mlxc: &'a Path,
    ours: &'a Path,
    wheels: &'a Wheels,
    /// What our own sources are compiled with.
    flags: &'a [&'a str],
}

impl Compiler<'_> {
    /// Compiles on all cores, and returns the object files.
    fn compile(&self, mut units: Vec<Unit>, folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
        // Largest first: the long one must not start last.
        let size = |unit: &Unit| fs::metadata(&unit.source).map_or(0, |data| data.len());
        units.sort_by_key(|unit| std::cmp::Reverse(size(unit)));
        in_parallel(&units, |unit| {
            let object = folder.join(&unit.object);
            let mut command = Command::new("g++");
            command.args(["-std=c++20", "-fPIC", "-c"]).arg(&unit.source).arg("-o").arg(&object);
            if unit.ours {
                // Vectors are passed to nothing outside a file.
                command.args(["-Wall", "-Wno-psabi", "-Wno-unused-variable"]).args(self.flags);
                command.arg("-I").arg(self.ours).arg("-I").arg(self.wheels.blas_headers());
            } else {
                command.args(["-O2", "-w"]);
            }
            command.arg("-include").arg(self.ours.join("shim/prelude.h"));
            command.arg("-I").arg(self.mlxc).arg("-I").arg(self.wheels.mlx_headers());
            process::capture(&mut command)?;
            Ok(object)
        })
    }

    /// The command that links objects into a library.
    fn link(&self, objects: &[PathBuf], library: &Path) -> Command {
        let mut link = Command::new("g++");
        link.arg("-shared").arg("-o").arg(library).args(objects).args(self.flags);
        link.args(["-Xlinker", "--no-undefined", "-Xlinker", "--enable-new-dtags"]);
        for folder in [self.wheels.blas_library(), self.wheels.mlx_library()] {
            link.arg("-L").arg(folder);
        }
        link.args(["-lscipy_openblas", "-lmlx"]);
        link
    }
}

/// Compiles mlx-c and our own sources into `home/lib`, to be found at `final_path` one day.
pub(super) fn build(sources: &Path, wheels: &Wheels, home: &Path, final_path: &Path) -> Result<()> {
    let ours = workspace::root().join(OUR_SOURCES);
    // Loops over registers must be unrolled.
    let compiler = Compiler { mlxc: sources, ours: &ours, wheels, flags: &["-O3"] };
    let folder = home.join("objects");
    let objects = compiler.compile(units(sources, &ours)?, &folder)?;

    let mut link = compiler.link(&objects, &home.join("lib").join("libmlxc.so"));
    link.args(["-Xlinker", "-soname", "-Xlinker"]).arg(final_path);
    for within in [wheels::BLAS_LIBRARY, wheels::MLX_LIBRARY] {
        link.args(["-Xlinker", "-rpath", "-Xlinker"]);
        link.arg(format!("$ORIGIN/../{}/{within}", wheels::FOLDER));
    }
    process::capture(&mut link)?;
    fs::remove_dir_all(&folder).context(|| format!("cannot remove {}", folder.display()))
}

/// Compiles our own sources with a sanitizer into a library of their own. Preloaded, it takes the
/// place of those in `libmlxc.so`.
pub(super) fn build_sanitized(
    sources: &Path,
    wheels: &Wheels,
    sanitizer: &str,
    folder: &Path,
) -> Result<PathBuf> {
    let ours = workspace::root().join(OUR_SOURCES);
    let flags = [
        &format!("-fsanitize={sanitizer}"),
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        "-g",
        "-O1",
        // One version of every function: the loader chooses between them before the sanitizer is up.
        "-DFOR_EACH_PROCESSOR=",
    ];
    let compiler = Compiler { mlxc: sources, ours: &ours, wheels, flags: &flags };
    let mut units = units(sources, &ours)?;
    units.retain(|unit| unit.ours);
    let objects = compiler.compile(units, folder)?;
    let library = folder.join("libmlxgk.so");
    let mut link = compiler.link(&objects, &library);
    for folder in [wheels.blas_library(), wheels.mlx_library()] {
        link.args(["-Xlinker", "-rpath", "-Xlinker"]).arg(folder);
    }
    process::capture(&mut link)?;
    Ok(library)
}

/// Applies `work` to all items on all cores, and stops at the first failure.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Ok(Vec::with_capacity(items.len())));
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(item);
                    let mut results = results.lock().unwrap_or_else(|poison| poison.into_inner());
                    match (result, &mut *results) {
                        (Ok(done), Ok(all)) => all.push(done),
                        (Err(failure), Ok(_)) => *results = Err(failure),
                        (_, Err(_)) => return,
                    }
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(|poison| poison.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_one_name_have_objects_of_their_own() {
        let root = tempfile::tempdir().unwrap();
        let (mlxc, ours) = (root.path().join("mlx-c"), root.path().join("cpp"));
        for file in
            [mlxc.join("mlx/c/linalg.cpp"), ours.join("ops/linalg.cpp"), ours.join("linalg.cpp")]
        {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let units = units(&mlxc, &ours).unwrap();
        let objects: Vec<&str> = units.iter().map(|unit| unit.object.as_str()).collect();
        assert_eq!(objects, ["mlxc-mlx-c-linalg.o", "mlxgk-linalg.o", "mlxgk-ops-linalg.o"]);
    }
}
