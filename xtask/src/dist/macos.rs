//! macOS: the program, with MLX in it, and MLX's Metal library beside it, where MLX looks first.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Archive, QUESTION, unpack};
use crate::failure::{Failure, Result};
use crate::{process, setup, workspace};

/// The oldest macOS that MLX supports.
const OLDEST: &str = "14.0";
const LIBRARY: &str = "mlx.metallib";

/// Builds the program and packs it.
pub(super) fn make() -> Result<PathBuf> {
    setup::ensure()?;
    let metal = workspace::build().join("dist/metal");
    let mut build = process::cargo();
    build.current_dir(workspace::root());
    build.env("MACOSX_DEPLOYMENT_TARGET", OLDEST).env("MLX_RS_METAL_PATH", &metal);
    process::show(build.args(["build", "--release", "--package", "mlxgk"]))?;

    let target = format!("{}-apple-darwin", std::env::consts::ARCH);
    let archive = Archive::begin(&target)?;
    archive.add(&workspace::target()?.join("release/mlxgk"), "mlxgk")?;
    let library = metal.join(LIBRARY);
    if !library.is_file() {
        return Err(Failure::new(format!("MLX's build left no {}", library.display())));
    }
    archive.add(&library, LIBRARY)?;
    archive.finish()
}

/// Lets the program answer in a folder of its own, without the environment.
pub(super) fn check(archive: &Path) -> Result<()> {
    let folder = unpack(archive, &workspace::build().join("dist/elsewhere"))?;
    let mut alone = Command::new(folder.join("mlxgk"));
    let found = process::capture(alone.env_clear().current_dir(&folder).args(QUESTION))?;
    if found.trim().is_empty() {
        return Err(Failure::new("the program says nothing"));
    }
    println!("dist: in a folder of its own it answers: {}", found.trim());
    Ok(())
}
