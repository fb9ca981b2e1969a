//! Where things lie in the checkout.

use std::path::{Path, PathBuf};

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

/// Where cargo puts what it builds, unless a configuration file of the user's says otherwise.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
