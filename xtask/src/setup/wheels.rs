//! The prebuilt parts, taken from published Python packages ("wheels", which are zip archives).
//!
//! Python is only the courier: nothing is installed, and nothing of Python is needed to run.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::backend::Backend;
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
const MLX_CPU: Pin = Pin {
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

/// MLX for NVIDIA's GPUs and the CPU, of the same version.
const MLX_CUDA: Pin = Pin {
    package: "mlx-cuda-13",
    version: "0.32.2",
    x86_64: "335094ccd1c0c6dc3e09c8caba207c8180602bacc0c38ba20c1d81e9456ab394",
    aarch64: "49b1a25df9021f3b519a534fd39a32a5cdbf93a1b265a31e59671c2d9fc9f4a2",
};

/// NVIDIA's libraries that it loads, and the headers of kernels that it compiles at run time.
const CUDA: [Pin; 6] = [
    Pin {
        package: "nvidia-cublas",
        version: "13.4.1.3",
        x86_64: "a5917cb642cfb07f4a0231ee16aec7e2e0357d8cb8b1b78a0c9c68dba3e6afc7",
        aarch64: "4eb1472bf92b741e7cf24da7978dde251b58ddec2092d9f6a04f3623eb4e9a15",
    },
    Pin {
        package: "nvidia-cudnn-cu13",
        version: "9.26.0.51",
        x86_64: "9c976d539786698c71d6bcdbe2053b7485fae062ff7e1215d2f2ff67b1a2149a",
        aarch64: "8e5b4f5eccff721416f70ecf4353172fc4d5cdd8ca869fe6f983a4a5b0147b20",
    },
    Pin {
        package: "nvidia-nccl-cu13",
        version: "2.30.7",
        x86_64: "cefa7fdb9710efd0f39c5f1be1d61ff6fc9a996c451265bd7fbdcf9455ed4b50",
        aarch64: "ca786ffa5a647c75d4d1f5cc72a6c4f537947e2ba8823d7c8aaf768e7a7b9f77",
    },
    Pin {
        package: "nvidia-cufft",
        version: "12.2.0.57",
        x86_64: "34da27fadf3979b0b042c43823f0530be8408b86df31ee0108e1ca0b621d4ef6",
        aarch64: "1ed438568ae1088ba2c25789d10205d4104b8b140b7bd942e39a787947a0fb74",
    },
    Pin {
        package: "nvidia-cuda-nvrtc",
        version: "13.2.86",
        x86_64: "8111c5130e967b78222ea2124145f8efe9ce201b752b2579a2513100a53be1c5",
        aarch64: "1e5d7b411a2eb83f5c71c98d58133a763fc9fa86a4241ee320c5c4782d9ad1fd",
    },
    Pin {
        package: "nvidia-cuda-runtime",
        version: "13.2.86",
        x86_64: "3498247680dfddce31bad102af7e3e26fc795342a3cac64722bb0fa95e7f60f0",
        aarch64: "37844957894bfdecf90243568d21a2cb251b66106915b71459a23c8e6ef2da69",
    },
];

/// What is fetched.
fn pins(backend: Backend) -> Vec<&'static Pin> {
    let mlx: Vec<&Pin> = match backend {
        Backend::Cpu => vec![&MLX_CPU],
        Backend::Cuda => std::iter::once(&MLX_CUDA).chain(&CUDA).collect(),
    };
    mlx.into_iter().chain([&OPENBLAS, &LIBCLANG]).collect()
}

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

/// Downloads the pinned wheels, checks their hashes and unpacks them into `home`, in the layout in which
/// MLX's library finds the others.
pub(super) fn fetch(home: &Path, backend: Backend) -> Result<Wheels> {
    let downloads = home.join("downloads");
    let pins = pins(backend);
    let requirements = pins.iter().map(|pin| format!("{}=={}", pin.package, pin.version));
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
        check(&wheel, &pins)?;
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
fn check(wheel: &Path, pins: &[&Pin]) -> Result<()> {
    let file = wheel.file_name().unwrap_or_default().to_string_lossy();
    let pin = pins.iter().find(|pin| {
        file.starts_with(&format!("{}-{}-", pin.package.replace('-', "_"), pin.version))
    });
    let Some(pin) = pin else {
        return Err(Failure::new(format!("pip fetched {file}, which is not pinned")));
    };
    let expected = if cfg!(target_arch = "x86_64") { pin.x86_64 } else { pin.aarch64 };
    let mut hash = Sha256::new();
    File::open(wheel)
        .and_then(|mut file| io::copy(&mut file, &mut hash))
        .context(|| format!("cannot read {}", wheel.display()))?;
    let found = hex(&hash.finalize());
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
        let failure = check(&wheel, &pins(Backend::Cpu)).unwrap_err();
        let message = failure.message().unwrap();
        // SHA-256 of "abc", FIPS 180-2, appendix B.1.
        assert!(
            message.contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        assert!(message.contains(MLX_CPU.x86_64) || message.contains(MLX_CPU.aarch64));
    }

    #[test]
    fn another_version_or_package_is_refused() {
        for name in ["mlx_cpu-0.32.20-py3-none-any.whl", "numpy-2.0.0-py3-none-any.whl"] {
            for backend in [Backend::Cpu, Backend::Cuda] {
                let failure = check(&file(name, ""), &pins(backend)).unwrap_err();
                assert!(failure.message().unwrap().contains("not pinned"), "{name}");
            }
        }
        let of_cpu = file("mlx_cpu-0.32.2-py3-none-manylinux.whl", "");
        let failure = check(&of_cpu, &pins(Backend::Cuda)).unwrap_err();
        assert!(failure.message().unwrap().contains("not pinned"));
    }

    #[test]
    fn every_hash_is_a_sha256() {
        let all = [Backend::Cpu, Backend::Cuda].into_iter().flat_map(pins);
        for hash in all.flat_map(|pin| [pin.x86_64, pin.aarch64]) {
            assert_eq!(hash.len(), 64);
            assert!(hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        }
    }
}
