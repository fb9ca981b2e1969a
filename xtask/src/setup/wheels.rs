//! The prebuilt parts, taken from published Python packages ("wheels", which are zip archives).
//!
//! Python is only the courier: nothing is installed, and nothing of Python is needed to run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::paths::{files_with_extension, utf8};
use super::recipe::hex;
use crate::failure::{Context, Failure, Result};
use crate::process;

/// A pinned package, with the hash of its wheel for each processor.
struct Pin {
    package: &'static str,
    version: &'static str,
    x86_64: &'static str,
    aarch64: &'static str,
}

/// MLX itself, for the CPU. The version is the one that mlx-sys wraps.
const MLX: Pin = Pin {
    package: "mlx-cpu",
    version: "0.32.2",
    x86_64: "fc5d31b90fc4f457b2f9614ed45651a567d22a6a11a03d114a90a4e10bdd8878",
    aarch64: "d0f94625588b51a878786dd51cec5617894ce586cf3c94645ce1b64e24c27c0b",
};

/// OpenBLAS, for MLX's matrix products.
const OPENBLAS: Pin = Pin {
    package: "scipy-openblas32",
    version: "0.3.34.481.3",
    x86_64: "0595f94cd58c1f8a0d90c975621f4587337a003916b1979e834ebdf2cb5d9504",
    aarch64: "e085dddbc5b9aa130f83def515d31c440e69f387a90c7e63b154a5575b4466bc",
};

/// libclang, with which bindgen reads C headers. Removed when setup is done.
const LIBCLANG: Pin = Pin {
    package: "libclang",
    version: "18.1.1",
    x86_64: "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b",
    aarch64: "54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592",
};

const PINS: [Pin; 3] = [MLX, OPENBLAS, LIBCLANG];

/// The unpacked wheels.
#[derive(Debug)]
pub(super) struct Wheels {
    folder: PathBuf,
}

impl Wheels {
    /// Those that lie in a finished `home`.
    pub(super) fn unpacked(home: &Path) -> Self {
        Self { folder: home.join(FOLDER) }
    }

    /// MLX's C++ headers.
    pub(super) fn mlx_headers(&self) -> PathBuf {
        self.folder.join("mlx/include")
    }

    /// The folder of `libmlx.so`.
    pub(super) fn mlx_library(&self) -> PathBuf {
        self.folder.join(MLX_LIBRARY)
    }

    /// OpenBLAS's C headers.
    pub(super) fn blas_headers(&self) -> PathBuf {
        self.folder.join("scipy_openblas32/include")
    }

    /// The folder of `libscipy_openblas.so`.
    pub(super) fn blas_library(&self) -> PathBuf {
        self.folder.join(BLAS_LIBRARY)
    }

    /// `libclang.so`.
    pub(super) fn libclang(&self) -> PathBuf {
        self.clang_data().join("platlib/clang/native/libclang.so")
    }

    /// Removes what only the build needed.
    pub(super) fn remove_build_only(&self) -> Result<()> {
        let data = self.clang_data();
        fs::remove_dir_all(&data).context(|| format!("cannot remove {}", data.display()))
    }

    fn clang_data(&self) -> PathBuf {
        self.folder.join(format!("libclang-{}.data", LIBCLANG.version))
    }
}

/// Where the wheels are unpacked, within the folder that setup makes.
pub(super) const FOLDER: &str = "wheels";
/// Where `libmlx.so` lies within an unpacked wheel.
pub(super) const MLX_LIBRARY: &str = "mlx/lib";
/// Where `libscipy_openblas.so` lies within an unpacked wheel.
pub(super) const BLAS_LIBRARY: &str = "scipy_openblas32/lib";

/// Downloads the pinned wheels, checks their hashes and unpacks them into `home`.
pub(super) fn fetch(home: &Path) -> Result<Wheels> {
    let downloads = home.join("downloads");
    let requirements = PINS.iter().map(|pin| format!("{}=={}", pin.package, pin.version));
    process::capture(
        Command::new("python3")
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"])
            .args(["--disable-pip-version-check", "--dest"])
            .arg(&downloads)
            .args(requirements),
    )
    .map_err(|failure| Failure::new(download_help(failure.message().unwrap_or_default())))?;

    let folder = home.join(FOLDER);
    for wheel in files_with_extension(&downloads, "whl")? {
        check(&wheel)?;
        process::capture(Command::new("python3").args([
            "-m",
            "zipfile",
            "-e",
            utf8(&wheel)?,
            utf8(&folder)?,
        ]))?;
    }
    fs::remove_dir_all(&downloads).context(|| format!("cannot remove {}", downloads.display()))?;
    Ok(Wheels { folder })
}

/// Compares a downloaded wheel with its pin, which its file name tells.
fn check(wheel: &Path) -> Result<()> {
    let file = wheel.file_name().unwrap_or_default().to_string_lossy();
    let pin = PINS.iter().find(|pin| {
        file.starts_with(&format!("{}-{}-", pin.package.replace('-', "_"), pin.version))
    });
    let Some(pin) = pin else {
        return Err(Failure::new(format!("pip fetched {file}, which is not pinned")));
    };
    let expected = if cfg!(target_arch = "x86_64") { pin.x86_64 } else { pin.aarch64 };
    let bytes = fs::read(wheel).context(|| format!("cannot read {}", wheel.display()))?;
    let found = hex(&Sha256::digest(bytes));
    if found == expected {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{file} is not the file that was pinned: its SHA-256 is {found}, not {expected}"
    )))
}

/// pip's own text, with the likely reasons when it found no wheel for this machine.
fn download_help(pip: &str) -> String {
    let mut text = format!("cannot fetch MLX's Linux build\n{pip}");
    if pip.contains("No matching distribution") {
        text.push_str(
            "\nEither the package index was out of reach, or this system is too old: glibc 2.35 \
             (Debian 12, Ubuntu 22.04, Fedora 36) and pip 20.3 are the oldest that will do",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-wheels-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn a_changed_wheel_is_refused_with_both_hashes() {
        let wheel = file("mlx_cpu-0.32.2-py3-none-any.whl", "abc");
        let failure = check(&wheel).unwrap_err();
        let message = failure.message().unwrap();
        // SHA-256 of "abc", FIPS 180-2, appendix B.1.
        assert!(
            message.contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        assert!(message.contains(MLX.x86_64) || message.contains(MLX.aarch64));
    }

    #[test]
    fn another_version_or_package_is_refused() {
        for name in ["mlx_cpu-0.32.20-py3-none-any.whl", "numpy-2.0.0-py3-none-any.whl"] {
            let failure = check(&file(name, "")).unwrap_err();
            assert!(failure.message().unwrap().contains("not pinned"), "{name}");
        }
    }

    #[test]
    fn every_hash_is_a_sha256() {
        for hash in PINS.iter().flat_map(|pin| [pin.x86_64, pin.aarch64]) {
            assert_eq!(hash.len(), 64);
            assert!(hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        }
    }
}
