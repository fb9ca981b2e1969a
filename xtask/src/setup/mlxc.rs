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

use super::linux::files_with_extension;
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

/// Compiles mlx-c and our own few sources into `home/lib`, to be found at `final_path` one day.
pub(super) fn build(sources: &Path, wheels: &Wheels, home: &Path, final_path: &Path) -> Result<()> {
    let native = workspace::root().join("xtask/native");
    let objects_folder = home.join("objects");
    fs::create_dir_all(&objects_folder)
        .context(|| format!("cannot create {}", objects_folder.display()))?;

    let mut files = files_with_extension(&sources.join("mlx/c"), "cpp")?;
    files.extend(files_with_extension(&native, "cpp")?);
    // Largest first: the long one must not start last.
    files.sort_by_key(|file| std::cmp::Reverse(fs::metadata(file).map_or(0, |data| data.len())));

    let compile = |file: &PathBuf| {
        let object = objects_folder.join(file.file_name().unwrap_or_default()).with_extension("o");
        let ours = file.starts_with(&native);
        let mut command = Command::new("g++");
        command.args(["-std=c++20", "-fPIC", "-c"]).arg(file).arg("-o").arg(&object);
        if ours {
            // Loops over registers must be unrolled; vectors are passed to nothing outside a file.
            command.args(["-O3", "-Wall", "-Wno-psabi", "-Wno-unused-variable"]);
            command.arg("-I").arg(wheels.blas_headers());
        } else {
            command.args(["-O2", "-w"]);
        }
        command.arg("-include").arg(native.join("prelude.h"));
        command.arg("-I").arg(sources).arg("-I").arg(wheels.mlx_headers());
        process::capture(&mut command)?;
        Ok(object)
    };
    let objects = in_parallel(&files, compile)?;

    let mut link = Command::new("g++");
    link.arg("-shared").arg("-o").arg(home.join("lib").join("libmlxc.so")).args(&objects);
    link.args(["-Xlinker", "-soname", "-Xlinker"]).arg(final_path);
    link.args(["-Xlinker", "--no-undefined", "-Xlinker", "--enable-new-dtags"]);
    for (folder, within) in
        [(wheels.blas_library(), wheels::BLAS_LIBRARY), (wheels.mlx_library(), wheels::MLX_LIBRARY)]
    {
        link.arg("-L").arg(folder).args(["-Xlinker", "-rpath", "-Xlinker"]);
        link.arg(format!("$ORIGIN/../{}/{within}", wheels::FOLDER));
    }
    link.args(["-lscipy_openblas", "-lmlx"]);
    process::capture(&mut link)?;
    fs::remove_dir_all(&objects_folder)
        .context(|| format!("cannot remove {}", objects_folder.display()))
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
