//! Paths and listings that the steps of setup share.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure, Result};

/// Our own C++, within the checkout: all of it is compiled into the native library.
pub(super) const OUR_SOURCES: &str = "crates/native/cpp";

/// A path as text, for the tools and files that take nothing else.
pub(super) fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Failure::usage(format!("the path {} is not UTF-8, which cargo needs", path.display()))
    })
}

/// The files of a folder and of the folders in it, in the order of their paths.
pub(super) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder)? {
            if entry.is_dir() { folders.push(entry) } else { files.push(entry) }
        }
    }
    files.sort();
    Ok(files)
}

/// The files of a folder with this extension, in the order of their names.
pub(super) fn files_with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = entries(folder)?;
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    Ok(files)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot read {}", folder.display());
    let paths = fs::read_dir(folder).context(context)?.map(|entry| Ok(entry?.path()));
    paths.collect::<std::io::Result<_>>().context(context)
}
