//! `cargo xtask dist`: an archive with the program and all it needs, which runs in any folder.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[cfg(target_os = "linux")]
use self::linux as platform;
#[cfg(target_os = "macos")]
use self::macos as platform;

use crate::failure::{Context, Failure, Result};
use crate::{cli, process, workspace};

pub(crate) const HELP: &str = "\
Builds mlxgk and packs it with all it needs: build/dist/mlxgk-VERSION-TARGET.tar.gz.

Usage: cargo xtask dist [--check]

  --check   then unpack the archive where nothing else is, and let the program answer there

Linux   The libraries lie beside the program, found relative to it. They need the glibc that is printed:
        2.35 for an archive that is built on Ubuntu 22.04. The check makes an empty folder with this
        machine's glibc the root; it needs root, or a kernel that lets users make namespaces.
macOS   MLX is within the program, and its Metal library beside it; for macOS 14 and newer.

Examples:
  cargo xtask dist
  cargo xtask dist --check";

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let check = match arguments {
        [] => false,
        [only] if only == "--check" => true,
        [first, ..] => return Err(cli::unexpected("dist", first)),
    };
    let archive = platform::make()?;
    println!("dist: {}", archive.display());
    if check { platform::check(&archive) } else { Ok(()) }
}

/// An archive in the making: a folder of its name, filled file by file.
struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// Begins one for a target, without what an earlier one left.
    fn begin(target: &str) -> Result<Self> {
        let folder = workspace::build().join("dist").join(format!("mlxgk-{}-{target}", version()?));
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .context(|| format!("cannot remove {}", folder.display()))?;
        }
        let archive = Self { folder };
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
            archive.add(&workspace::root().join(licence), licence)?;
        }
        archive.write("licences/crates.txt", &crates()?)?;
        Ok(archive)
    }

    fn add(&self, file: &Path, within: impl AsRef<Path>) -> Result<()> {
        let to = self.place(within.as_ref())?;
        fs::copy(file, &to)
            .context(|| format!("cannot copy {} to {}", file.display(), to.display()))?;
        Ok(())
    }

    fn write(&self, within: &str, text: &str) -> Result<()> {
        let to = self.place(Path::new(within))?;
        fs::write(&to, text).context(|| format!("cannot write {}", to.display()))
    }

    fn place(&self, within: &Path) -> Result<PathBuf> {
        let to = self.folder.join(within);
        let folder = to.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
        Ok(to)
    }

    /// Packs it.
    fn finish(self) -> Result<PathBuf> {
        let name = self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let above = self.folder.parent().unwrap_or(&self.folder);
        let path = above.join(format!("{name}.tar.gz"));
        let mut tar = Command::new("tar");
        process::capture(tar.arg("-czf").arg(&path).arg("-C").arg(above).arg(&name))?;
        Ok(path)
    }
}

/// The program's version.
fn version() -> Result<String> {
    let packages = workspace::published()?;
    let version =
        packages.iter().find(|it| it["name"] == "mlxgk").and_then(|it| it["version"].as_str());
    version.map(str::to_owned).ok_or_else(|| Failure::new("the workspace has no package mlxgk"))
}

/// The crates that the program is built of, and their licences.
fn crates() -> Result<String> {
    let mut tree = process::cargo();
    tree.current_dir(workspace::root());
    tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", "mlxgk"]);
    let listing = process::capture(tree.args(["--no-dedupe", "--format", "{p}: {l}"]))?;
    // Ours are named by where they lie.
    let mut lines: Vec<&str> = listing.lines().filter(|it| !it.contains(" (/")).collect();
    lines.sort_unstable();
    lines.dedup();
    Ok(lines.join("\n") + "\n")
}

/// Unpacks an archive into a folder, and returns the folder within it.
fn unpack(archive: &Path, into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into).context(|| format!("cannot create {}", into.display()))?;
    process::capture(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into))?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    Ok(into.join(name.trim_end_matches(".tar.gz")))
}

/// What the program is asked in a check.
const QUESTION: [&str; 6] =
    ["generate", "How is the weather?", "--temp", "0", "--max-tokens", "12"];
