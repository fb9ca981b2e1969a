//! Linux: the program, its libraries beside it, and a root with nothing else to try them in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Archive, QUESTION, unpack};
use crate::failure::{Context, Failure, Result};
use crate::{process, setup, workspace};

/// Where the program looks for its libraries. The compiler's are in the second folder, because
/// `libmlxc.so` looks there, too.
const RUN_PATH: &str = "$ORIGIN/lib:$ORIGIN/wheels/mlx/lib";
const COMPILERS: &str = "wheels/mlx/lib";

/// The compiler's libraries, which not every machine has, or not as new.
const OF_THE_COMPILER: [&str; 2] = ["libstdc++.so.6", "libgcc_s.so.1"];

/// What a root needs to start any program.
const GLIBC: [&str; 6] =
    ["libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"];

const README: &str = "\
mlxgk: Hugging Face generate() for MLX on the command line.

    ./mlxgk generate \"Tell me a story about a fox.\"

The folder can be moved as a whole; a link to mlxgk from elsewhere works, too. `./mlxgk help` shows the
commands, and https://github.com/mlx-genkit/mlx-genkit the rest.

mlxgk is licensed under MIT or Apache-2.0. The licences of MLX (libmlx, with LAPACK and the Fortran
runtime of GCC), mlx-c (in libmlxc) and OpenBLAS are in licences/, and crates.txt there names those of the
Rust crates. libstdc++ and libgcc_s are GCC's, under the GPL with the GCC Runtime Library Exception.
";

/// Builds the program and packs it.
pub(super) fn make() -> Result<PathBuf> {
    let movable = setup::movable()?;
    let mut build = process::cargo();
    build.current_dir(workspace::root());
    build.args(["rustc", "--release", "--package", "mlxgk", "--bin", "mlxgk", "--"]);
    // Before the folder that cargo's configuration names, where the library has its path for a name.
    build.arg("-L").arg(format!("native={}", movable.library.display()));
    build.arg(format!("-Clink-arg=-Wl,-rpath,{RUN_PATH}")).arg("-Cstrip=debuginfo");
    process::show(&mut build)?;

    let archive = Archive::begin(movable.triple)?;
    archive.add(&workspace::target()?.join("release/mlxgk"), "mlxgk")?;
    for (file, within) in &movable.files {
        archive.add(file, within)?;
    }
    for name in OF_THE_COMPILER {
        archive.add(&compilers(name)?, Path::new(COMPILERS).join(name))?;
    }
    for (file, name) in &movable.licences {
        archive.add(file, Path::new("licences").join(name))?;
    }
    archive.write("README.txt", README)?;
    let files = programs(&archive.folder)?;
    for file in &files {
        relative_names_only(file)?;
    }
    let ((major, minor), file) = newest_glibc(&files)?;
    println!("dist: runs with glibc {major}.{minor} or newer, which {file} asks for");
    archive.finish()
}

/// A library of the compiler's, as a file and not as a link.
fn compilers(name: &str) -> Result<PathBuf> {
    let path = process::capture(Command::new("g++").arg(format!("-print-file-name={name}")))?;
    let found = Path::new(path.trim());
    // g++ answers with the bare name where it knows no such file.
    let found = if found.is_absolute() { found.to_owned() } else { glibc_folder()?.join(name) };
    fs::canonicalize(&found).context(|| format!("cannot find {name}"))
}

/// The program and the libraries of an archive.
fn programs(folder: &Path) -> Result<Vec<PathBuf>> {
    let listing = process::capture(
        Command::new("find").arg(folder).args(["-name", "*.so*", "-o", "-name", "mlxgk"]),
    )?;
    Ok(listing.lines().map(PathBuf::from).collect())
}

/// Fails where a program or library names another by a path, or looks in a folder that is not relative.
fn relative_names_only(file: &Path) -> Result<()> {
    let entries = process::capture(Command::new("readelf").arg("-d").arg(file))?;
    for name in names(&entries) {
        if name.split(':').any(|it| it.contains('/') && !it.starts_with("$ORIGIN")) {
            return Err(Failure::new(format!("{} names {name}", file.display())));
        }
    }
    Ok(())
}

/// The names in a dynamic section: libraries needed, its own, and run paths.
fn names(entries: &str) -> impl Iterator<Item = &str> {
    let kinds = ["(NEEDED)", "(SONAME)", "(RPATH)", "(RUNPATH)"];
    let lines = entries.lines().filter(move |line| kinds.iter().any(|kind| line.contains(kind)));
    lines.filter_map(|line| line.split_once('[')?.1.strip_suffix(']'))
}

/// The newest version of glibc that one of the files asks for, and that file's name.
fn newest_glibc(files: &[PathBuf]) -> Result<((u32, u32), String)> {
    let mut newest = ((0, 0), String::new());
    for file in files {
        let versions = process::capture(Command::new("readelf").arg("-V").arg(file))?;
        let needed = glibc_versions(&versions).max().unwrap_or_default();
        if needed > newest.0 {
            newest = (needed, file.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    Ok(newest)
}

fn glibc_versions(versions: &str) -> impl Iterator<Item = (u32, u32)> {
    versions.split("GLIBC_").skip(1).filter_map(|it| {
        let word = it.split(|end: char| !end.is_ascii_digit() && end != '.').next()?;
        let mut numbers = word.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

/// Lets the program answer in a root that holds the archive and glibc, and nothing else.
pub(super) fn check(archive: &Path) -> Result<()> {
    let root = workspace::build().join("dist/root");
    if root.exists() {
        fs::remove_dir_all(&root).context(|| format!("cannot remove {}", root.display()))?;
    }
    let folder = unpack(archive, &root.join("opt"))?;
    let libraries = glibc_folder()?;
    let there = root.join(libraries.strip_prefix("/").unwrap_or(&libraries));
    fs::create_dir_all(&there).context(|| format!("cannot create {}", there.display()))?;
    for name in GLIBC {
        // Newer releases have most of them within libc.
        if libraries.join(name).exists() {
            copy(&libraries.join(name), &there.join(name))?;
        }
    }
    let loader = loader(&folder.join("mlxgk"))?;
    copy(&loader, &root.join(loader.strip_prefix("/").unwrap_or(&loader)))?;

    let expected = process::capture(Command::new(folder.join("mlxgk")).args(QUESTION))?;
    let within = Path::new("/").join(folder.strip_prefix(&root).unwrap_or(&folder)).join("mlxgk");
    // A program finds out where it lies from /proc, which every machine has, so the root has one, too; for
    // that it is a namespace of its own.
    let proc = root.join("proc");
    fs::create_dir_all(&proc).context(|| format!("cannot create {}", proc.display()))?;
    let mut alone = Command::new("unshare");
    alone.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    if process::capture(Command::new("id").arg("-u"))?.trim() != "0" {
        alone.arg("--map-root-user");
    }
    alone.args(["--mount", "--pid", "--fork"]).arg(format!("--mount-proc={}", proc.display()));
    let found = process::capture(alone.arg("chroot").arg(&root).arg(within).args(QUESTION))?;
    if found.trim().is_empty() || found != expected {
        return Err(Failure::new(format!(
            "in the bare root the program says {found:?}, not {expected:?}"
        )));
    }
    println!("dist: in a root with nothing else it answers: {}", found.trim());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
    fs::copy(from, to).context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Where this machine keeps glibc.
fn glibc_folder() -> Result<PathBuf> {
    let path = process::capture(Command::new("g++").arg("-print-file-name=libc.so.6"))?;
    let path = fs::canonicalize(path.trim()).context(|| "cannot find libc.so.6")?;
    Ok(path.with_file_name(""))
}

/// The loader that a program asks for.
fn loader(program: &Path) -> Result<PathBuf> {
    let headers = process::capture(Command::new("readelf").arg("-l").arg(program))?;
    let line = headers.lines().find_map(|it| it.split_once("interpreter: ")?.1.strip_suffix(']'));
    line.map(PathBuf::from).ok_or_else(|| Failure::new("the program names no loader"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_are_read() {
        let entries = "\
 0x01 (NEEDED)             Shared library: [libmlxc.so]
 0x1d (RUNPATH)            Library runpath: [$ORIGIN/lib:$ORIGIN/../x]
 0x0e (SONAME)             Library soname: [/somewhere/lib.so]
 0x0c (INIT)               0x1000
";
        let found: Vec<&str> = names(entries).collect();
        assert_eq!(found, ["libmlxc.so", "$ORIGIN/lib:$ORIGIN/../x", "/somewhere/lib.so"]);
        let text =
            "Name: GLIBC_2.34  Flags: none\n Name: GLIBC_2.2.5 GLIBCXX_3.4\n Name: GLIBC_PRIVATE";
        assert_eq!(glibc_versions(text).max(), Some((2, 34)));
    }
}
