//! Finding and reading fixture files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// The `*.json` files directly in `folder`, in the order of their names.
///
/// # Errors
/// When the folder cannot be read, or has none: a check over nothing must not pass.
pub(crate) fn json_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(format!("{} holds no fixture", folder.display()));
    }
    Ok(files)
}

/// Reads one fixture.
///
/// # Errors
/// When the file is missing or is not what the recorder writes.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))
}
