//! What setup makes, named by everything that goes into it.
//!
//! The name is a hash over the pins, the sources and the code that builds them, and the checkout's
//! own path, which the library carries inside. Change any of them, or move the checkout, and setup
//! builds anew; since the path changes with it, cargo notices too and rebuilds mlx-sys.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::linux::utf8;
use crate::failure::{Failure, Result};

/// Everything that decides what the native library is. The code that builds it is among them, so
/// that no change to it can be forgotten here.
const INGREDIENTS: &[&str] = &[
    include_str!("wheels.rs"),
    include_str!("mlxc.rs"),
    include_str!("bindings.rs"),
    include_str!("../../native/attention.cpp"),
    include_str!("../../native/blas.cpp"),
    include_str!("../../native/blas.h"),
    include_str!("../../native/clock.cpp"),
    include_str!("../../native/few_rows.cpp"),
    include_str!("../../native/few_rows.h"),
    include_str!("../../native/gate.cpp"),
    include_str!("../../native/half_types.h"),
    include_str!("../../native/half_types.rs"),
    include_str!("../../native/linear.cpp"),
    include_str!("../../native/norm.cpp"),
    include_str!("../../native/op.cpp"),
    include_str!("../../native/op.h"),
    include_str!("../../native/prelude.h"),
    include_str!("../../native/rotate.cpp"),
    include_str!("../../native/vectors.h"),
    include_str!("../../native/workers.cpp"),
    include_str!("../../native/workers.h"),
];

/// What to make, for which machine.
#[derive(Debug)]
pub(super) struct Recipe {
    name: String,
    triple: &'static str,
}

impl Recipe {
    /// The recipe for this checkout on this machine.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let triple = triple(std::env::consts::ARCH, cfg!(target_env = "gnu"))?;
        let mut hash = Sha256::new();
        for ingredient in [utf8(root)?, triple].iter().chain(INGREDIENTS) {
            // The length keeps two neighbours from trading text unseen.
            hash.update(ingredient.len().to_le_bytes());
            hash.update(ingredient);
        }
        Ok(Self { name: hex(&hash.finalize()[..6]), triple })
    }

    /// The target triple that cargo's configuration is for.
    pub(super) fn triple(&self) -> &'static str {
        self.triple
    }

    /// The folder it is made in.
    pub(super) fn home(&self, build: &Path) -> PathBuf {
        build.join("mlx").join(&self.name)
    }

    /// Whether it is made, and cargo is pointed at it.
    pub(super) fn is_done(&self, build: &Path) -> bool {
        let home = self.home(build);
        let written = fs::read_to_string(config_file(build));
        library(&home).is_file() && written.is_ok_and(|text| text == self.config(&home))
    }

    /// The text of cargo's configuration: an override of mlx-sys's build script (the Cargo book,
    /// "Overriding build scripts").
    pub(super) fn config(&self, home: &Path) -> String {
        let library = library(home);
        let search = library.parent().unwrap_or(home);
        format!(
            "# Written by `cargo xtask setup`; see docs/native-mlx.md.\n\
             [target.{}.mlx]\n\
             rustc-link-search = [{}]\n\
             rustc-link-lib = [\"dylib=mlxc\"]\n\
             rustc-env = {{ OUT_DIR = {} }}\n",
            self.triple,
            quote(&format!("native={}", search.display())),
            quote(&home.display().to_string()),
        )
    }
}

/// The configuration file that `.cargo/config.toml` includes.
pub(super) fn config_file(build: &Path) -> PathBuf {
    build.join("mlx-native.toml")
}

/// The one library that mlx-sys links.
pub(super) fn library(home: &Path) -> PathBuf {
    home.join("lib").join("libmlxc.so")
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn triple(arch: &str, gnu: bool) -> Result<&'static str> {
    match (arch, gnu) {
        ("x86_64", true) => Ok("x86_64-unknown-linux-gnu"),
        ("aarch64", true) => Ok("aarch64-unknown-linux-gnu"),
        _ => Err(Failure::usage(format!(
            "MLX is published for x86-64 and aarch64 Linux with the GNU C library only; \
             this is {arch}{}",
            if gnu { "" } else { " with another C library" }
        ))),
    }
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_follows_the_checkout() {
        let here = Recipe::new(Path::new("/a/checkout")).unwrap();
        let again = Recipe::new(Path::new("/a/checkout")).unwrap();
        let moved = Recipe::new(Path::new("/b/checkout")).unwrap();
        assert_eq!(here.name, again.name);
        assert_ne!(here.name, moved.name);
        assert_eq!(here.name.len(), 12);
    }

    #[test]
    fn it_is_done_when_the_library_is_there_and_cargo_points_at_it() {
        let build = std::env::temp_dir().join(format!("xtask-recipe-{}", std::process::id()));
        let recipe = Recipe::new(Path::new("/a/checkout")).unwrap();
        let home = recipe.home(&build);
        assert!(!recipe.is_done(&build));
        fs::create_dir_all(home.join("lib")).unwrap();
        fs::write(library(&home), "").unwrap();
        assert!(!recipe.is_done(&build), "cargo does not know yet");
        fs::write(config_file(&build), recipe.config(&home)).unwrap();
        assert!(recipe.is_done(&build));
        fs::write(config_file(&build), "# edited\n").unwrap();
        assert!(!recipe.is_done(&build), "the configuration was changed");
        fs::remove_dir_all(&build).unwrap();
    }

    #[test]
    fn the_configuration_quotes_paths() {
        let recipe = Recipe { name: "n".into(), triple: "aarch64-unknown-linux-gnu" };
        let text = recipe.config(Path::new("/a \"b\"/c\\d"));
        assert!(text.contains("[target.aarch64-unknown-linux-gnu.mlx]"));
        assert!(text.contains(r#"["native=/a \"b\"/c\\d/lib"]"#), "{text}");
        assert!(text.contains(r#"OUT_DIR = "/a \"b\"/c\\d""#), "{text}");
    }

    #[test]
    fn other_machines_are_refused_by_name() {
        assert!(triple("x86_64", true).is_ok());
        let message = triple("riscv64", true).unwrap_err();
        assert!(message.message().unwrap().contains("riscv64"));
        assert!(triple("x86_64", false).is_err());
    }
}
