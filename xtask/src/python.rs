//! Python environments of the project's own: made under build/, pinned by a requirements file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context, Failure, Result};
use crate::{process, workspace};

/// The interpreter of the environment `build/venv/NAME`, which is made, or brought up to date,
/// unless it holds exactly what the requirements file asks for.
pub(crate) fn environment(name: &str, requirements: &str) -> Result<PathBuf> {
    environment_with(name, requirements, &[])
}

/// As [`environment`], with variables for packages that are compiled.
pub(crate) fn environment_with(
    name: &str,
    requirements: &str,
    variables: &[(&str, &str)],
) -> Result<PathBuf> {
    let environment = workspace::build().join("venv").join(name);
    let python = environment.join("bin/python");
    let path = workspace::root().join(requirements);
    let wanted = fs::read_to_string(&path).context(|| format!("cannot read {requirements}"))?;
    let stamp = environment.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    eprintln!("installing what {requirements} asks for into {}", environment.display());
    if !process::works(&python, &["-m", "pip", "--version"]) {
        create(&environment)?;
    }
    process::show(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&path)
            .envs(variables.iter().copied()),
    )?;
    // Last, so that an installation that stopped halfway is taken up again.
    fs::write(&stamp, wanted).context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// Puts exactly the packages that the requirements file names into the folder `build/venv/NAME`, for
/// an interpreter whose environment has the rest.
pub(crate) fn packages(python: &Path, name: &str, requirements: &str) -> Result<()> {
    let folder = workspace::build().join("venv").join(name);
    let path = workspace::root().join(requirements);
    let wanted = fs::read_to_string(&path).context(|| format!("cannot read {requirements}"))?;
    let stamp = folder.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    eprintln!("installing what {requirements} asks for into {}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).context(|| format!("cannot remove {}", folder.display()))?;
    }
    process::show(
        Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .arg("--target")
            .arg(&folder)
            .arg("-r")
            .arg(&path),
    )?;
    fs::write(&stamp, wanted).context(|| format!("cannot write {}", stamp.display()))
}

/// Makes an empty environment, with pip in it.
fn create(environment: &Path) -> Result<()> {
    if !process::works("python3", &["-c", "import venv, ensurepip"]) {
        return Err(Failure::usage(
            "python3 with its venv module is missing: install it (Debian, Ubuntu: `apt install \
             python3-venv`; Fedora: `dnf install python3`)",
        ));
    }
    process::show(Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment))
}
