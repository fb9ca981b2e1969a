//! Finding and reading fixture files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use crate::Case;

/// The cases of every `*.json` directly in `folder`, in the order of their names. `read` is given a
/// file and the name of its suite, `area/file`.
///
/// A check over nothing must not pass: a folder without fixtures, a fixture that cannot be read and
/// one without cases are cases that fail.
pub(crate) fn suites(
    folder: &Path,
    read: impl Fn(&Path, &str) -> Result<Vec<Case>, String>,
) -> Vec<Case> {
    let area = folder.file_name().unwrap_or_default().to_string_lossy();
    let files = match json_files(folder) {
        Ok(files) => files,
        Err(what) => return vec![Case::unreadable(&area, what)],
    };
    let suite = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let suite = format!("{area}/{stem}");
        match read(path, &suite) {
            Ok(cases) if cases.is_empty() => {
                vec![Case::unreadable(&suite, format!("{} holds no case", path.display()))]
            }
            Ok(cases) => cases,
            Err(what) => vec![Case::unreadable(&suite, what)],
        }
    };
    files.iter().flat_map(suite).collect()
}

fn json_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
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

/// The cases of a fixture that holds little else.
#[cfg(any(feature = "processors", feature = "samplers"))]
pub(crate) fn read_cases<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, String> {
    #[derive(serde::Deserialize)]
    struct File<T> {
        cases: Vec<T>,
    }
    read::<File<T>>(path).map(|it| it.cases)
}
