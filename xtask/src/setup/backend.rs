//! What MLX computes with on Linux: the CPU, or NVIDIA's GPUs.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::recipe::config_file;
use super::wheels::Wheels;
use crate::failure::{Failure, Result};
use crate::process;

/// Which of MLX's published builds is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Cpu,
    Cuda,
}

/// NVIDIA's driver, which no package brings.
const DRIVER: &str = "libcuda.so.1";

impl Backend {
    /// The one that cargo is pointed at; the CPU's where it is pointed at none.
    pub(super) fn chosen(build: &Path) -> Self {
        let written = fs::read_to_string(config_file(build)).unwrap_or_default();
        if written.starts_with(Self::Cuda.heading()) { Self::Cuda } else { Self::Cpu }
    }

    /// The first line of cargo's configuration.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Cpu => "# Written by `cargo xtask setup`; see docs/native-mlx.md.",
            Self::Cuda => "# Written by `cargo xtask setup --cuda`; see docs/native-mlx.md.",
        }
    }

    /// What the names of the folders that are made for it end with.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Cpu => "",
            Self::Cuda => "-cuda",
        }
    }

    /// How much is downloaded.
    pub(super) fn download(self) -> &'static str {
        match self {
            Self::Cpu => "MLX, OpenBLAS and libclang (about 45 MB)",
            Self::Cuda => "MLX, NVIDIA's libraries, OpenBLAS and libclang (about 1.5 GB)",
        }
    }
}

/// Fails where MLX's library needs others that are neither beside it nor installed, and says so where the
/// driver is missing, without which programs can be built but not started.
pub(super) fn check_libraries(wheels: &Wheels) -> Result<()> {
    let library = wheels.mlx_library().join("libmlx.so");
    let found = process::capture(Command::new("ldd").env("LC_ALL", "C").arg(&library))?;
    let missing = missing(&found);
    let others: Vec<&str> = missing.iter().copied().filter(|it| *it != DRIVER).collect();
    if !others.is_empty() {
        return Err(Failure::new(format!(
            "MLX's CUDA build needs {}, which are neither installed nor among what was downloaded",
            others.join(", ")
        )));
    }
    if missing.contains(&DRIVER) {
        eprintln!(
            "setup: {DRIVER}, NVIDIA's driver, is not installed here: programs start only where it is, and \
             GNU's linker does not link them without it (rustc's own, the default on x86-64, does)"
        );
    }
    Ok(())
}

/// The libraries that ldd did not find.
fn missing(ldd: &str) -> Vec<&str> {
    ldd.lines().filter_map(|it| it.trim().strip_suffix(" => not found")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_are_missing_are_told() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibcuda.so.1 => not found\n\
                   \tlibcudnn.so.9 => /x/libcudnn.so.9 (0x00007f)\n\tlibnccl.so.2 => not found\n";
        assert_eq!(missing(ldd), ["libcuda.so.1", "libnccl.so.2"]);
    }

    #[test]
    fn the_configuration_says_what_was_chosen() {
        let build = tempfile::tempdir().unwrap();
        assert_eq!(Backend::chosen(build.path()), Backend::Cpu);
        for backend in [Backend::Cuda, Backend::Cpu] {
            fs::write(config_file(build.path()), backend.heading()).unwrap();
            assert_eq!(Backend::chosen(build.path()), backend);
        }
    }
}
