//! Where things lie in the checkout.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::{Context, Failure, Result};
use crate::process;

/// The checkout's folder. Asked of the running cargo, since a checkout can be moved after this
/// program was compiled.
pub(crate) fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// What the chores make, apart from cargo's own folder so that `cargo clean` leaves it.
pub(crate) fn build() -> PathBuf {
    root().join("build")
}

/// Where cargo puts what it builds: cargo's to say, since configuration and environment can move it.
pub(crate) fn target() -> Result<PathBuf> {
    let folder = metadata()?["target_directory"].as_str().map(PathBuf::from);
    folder.ok_or_else(|| Failure::new("cargo does not say where it builds"))
}

/// The packages that have features, and these.
pub(crate) fn features() -> Result<Vec<(String, Vec<String>)>> {
    let metadata = metadata()?;
    let package = |it: &Value| {
        let features = it["features"].as_object()?;
        let features: Vec<String> = features.keys().cloned().collect();
        (!features.is_empty()).then_some((it["name"].as_str()?.to_owned(), features))
    };
    Ok(metadata["packages"].as_array().into_iter().flatten().filter_map(package).collect())
}

fn metadata() -> Result<Value> {
    let metadata = process::capture(process::cargo().current_dir(root()).args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
    ]))?;
    serde_json::from_str(&metadata).context(|| "cannot read the output of `cargo metadata`")
}
