//! What setup makes, named by everything that goes into it.
//!
//! The name is a hash over the sources, the code that builds them, the pins among it, and the
//! checkout's own path, which the library carries inside. Change any of them, or move the checkout,
//! and setup builds again; since the path changes with it, cargo notices too and rebuilds mlx-sys.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::backend::Backend;
use super::bindings;
use super::paths::{OUR_SOURCES, files_below, utf8};
use crate::failure::{Context, Failure, Result};

/// The folders that decide what the native library is: what is compiled, and the code that builds it.
/// Every file in them counts, so that none can be forgotten.
const INGREDIENTS: [&str; 2] = [OUR_SOURCES, "xtask/src/setup"];

/// What to make, for which machine.
#[derive(Debug)]
pub(super) struct Recipe {
    name: String,
    triple: &'static str,
    backend: Backend,
}

impl Recipe {
    /// The recipe for this checkout on this machine.
    pub(super) fn new(root: &Path, backend: Backend) -> Result<Self> {
        let triple = triple(std::env::consts::ARCH, cfg!(target_env = "gnu"))?;
        let mut hash = Sha256::new();
        let mut add = |ingredient: &[u8]| {
            // The length keeps two neighbours from trading text unseen.
            hash.update(ingredient.len().to_le_bytes());
            hash.update(ingredient);
        };
        add(utf8(root)?.as_bytes());
        add(triple.as_bytes());
        for folder in INGREDIENTS {
            for file in files_below(&root.join(folder))? {
                let text = fs::read(&file).context(|| format!("cannot read {}", file.display()))?;
                add(utf8(file.strip_prefix(root).unwrap_or(&file))?.as_bytes());
                add(&text);
            }
        }
        let name = format!("{}{}", hex(&hash.finalize()[..6]), backend.ending());
        Ok(Self { name, triple, backend })
    }

    /// What MLX computes with.
    pub(super) fn backend(&self) -> Backend {
        self.backend
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

    /// The text of cargo's configuration: overrides of the build scripts of mlx-sys, which would compile
    /// MLX, and of mlxgk-native-config, which would say that this text is missing (the Cargo book,
    /// "Overriding build scripts").
    pub(super) fn config(&self, home: &Path) -> String {
        let library = library(home);
        let search = library.parent().unwrap_or(home);
        format!(
            "{}\n\
             [target.{}.mlx]\n\
             rustc-link-search = [{}]\n\
             rustc-link-lib = [\"dylib=mlxc\"]\n\
             rustc-env = {{ OUT_DIR = {} }}\n\
             native_ops = {}\n\
             # So that mlxgk-native-config does not complain.\n\
             [target.{}.mlxgk_native_config]\n",
            self.backend.heading(),
            self.triple,
            quote(&format!("native={}", search.display())),
            quote(&home.display().to_string()),
            quote(&home.join(bindings::OF_OURS).display().to_string()),
            self.triple,
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
    use tempfile::TempDir;

    use super::*;

    /// A checkout with the folders that a recipe reads.
    fn checkout() -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in INGREDIENTS {
            fs::create_dir_all(root.path().join(folder).join("inner")).unwrap();
            fs::write(root.path().join(folder).join("inner/file"), "text").unwrap();
        }
        root
    }

    fn name(root: &TempDir) -> String {
        Recipe::new(root.path(), Backend::Cpu).unwrap().name
    }

    #[test]
    fn the_name_follows_the_checkout() {
        let (here, there) = (checkout(), checkout());
        assert_eq!(name(&here), name(&here));
        assert_ne!(name(&here), name(&there));
        assert_eq!(name(&here).len(), 12);
    }

    #[test]
    fn the_name_follows_every_file_that_is_compiled_or_builds() {
        let root = checkout();
        let mut names = vec![name(&root)];
        for folder in INGREDIENTS {
            let folder = root.path().join(folder);
            let new = folder.join("ops");
            fs::create_dir_all(&new).unwrap();
            fs::write(new.join("new.cpp"), "first").unwrap();
            names.push(name(&root));
            fs::write(new.join("new.cpp"), "other").unwrap();
            names.push(name(&root));
            fs::rename(new.join("new.cpp"), new.join("old.cpp")).unwrap();
            names.push(name(&root));
            fs::write(folder.join("new.h"), "").unwrap();
            names.push(name(&root));
        }
        let distinct: std::collections::HashSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }

    #[test]
    fn it_is_done_when_the_library_is_there_and_cargo_points_at_it() {
        let root = checkout();
        let build = root.path().join("build");
        let recipe = Recipe::new(root.path(), Backend::Cpu).unwrap();
        let home = recipe.home(&build);
        assert!(!recipe.is_done(&build));
        fs::create_dir_all(home.join("lib")).unwrap();
        fs::write(library(&home), "").unwrap();
        assert!(!recipe.is_done(&build), "cargo does not know yet");
        fs::write(config_file(&build), recipe.config(&home)).unwrap();
        assert!(recipe.is_done(&build));
        fs::write(config_file(&build), "# edited\n").unwrap();
        assert!(!recipe.is_done(&build), "the configuration was changed");
        let cuda = Recipe::new(root.path(), Backend::Cuda).unwrap();
        assert_ne!(cuda.home(&build), home, "both may be there");
        fs::write(config_file(&build), recipe.config(&home)).unwrap();
        assert!(recipe.is_done(&build) && !cuda.is_done(&build));
    }

    #[test]
    fn the_configuration_quotes_paths() {
        let (name, backend) = ("n".into(), Backend::Cpu);
        let recipe = Recipe { name, triple: "aarch64-unknown-linux-gnu", backend };
        let text = recipe.config(Path::new("/a \"b\"/c\\d"));
        assert!(text.contains("[target.aarch64-unknown-linux-gnu.mlx]"));
        assert!(text.contains("[target.aarch64-unknown-linux-gnu.mlxgk_native_config]"));
        assert!(text.contains(r#"["native=/a \"b\"/c\\d/lib"]"#), "{text}");
        assert!(text.contains(r#"OUT_DIR = "/a \"b\"/c\\d""#), "{text}");
        assert!(text.contains(r#"native_ops = "/a \"b\"/c\\d/native_ops.rs""#), "{text}");
    }

    #[test]
    fn other_machines_are_refused_by_name() {
        assert!(triple("x86_64", true).is_ok());
        let message = triple("riscv64", true).unwrap_err();
        assert!(message.message().unwrap().contains("riscv64"));
        assert!(triple("x86_64", false).is_err());
    }
}
