//! The cache on disk that all Hugging Face programs share.
//!
//! ```text
//! models--Qwen--Qwen3-0.6B/
//!     blobs/<hash>                content, named by its hash
//!     refs/main                   the commit that a branch or tag stood at
//!     snapshots/<commit>/<file>   links to blobs
//! ```
//!
//! The layout is `huggingface_hub`'s, including the lock files beside it (`.locks`), so that both
//! may work on one cache at a time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    Error, ErrorKind, ModelId, Result,
    files::{INDEX, WHOLE, read},
};

/// A model in the cache, at one commit.
///
/// ```
/// use mlxgk_model_hub::Hub;
///
/// let cache = tempfile::tempdir().unwrap();
/// // What a download leaves, without the weights.
/// let snapshot = cache.path().join("models--owner--tiny/snapshots").join("0".repeat(40));
/// std::fs::create_dir_all(&snapshot).unwrap();
/// std::fs::write(snapshot.join("config.json"), "{}").unwrap();
///
/// let models = Hub::builder()?.cache(cache.path()).build().models()?;
/// assert_eq!((&*models[0].repo, models[0].bytes), ("owner/tiny", 2));
/// assert!(!models[0].is_complete);
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CachedModel {
    /// `owner/name`.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// The branches and tags that stood at this commit when they were fetched.
    pub revisions: Vec<String>,
    /// The folder to load.
    pub folder: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether config and weights are all there.
    pub is_complete: bool,
}

/// The folder that holds all models.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn model(&self, id: &ModelId) -> PathBuf {
        self.root.join(id.folder_name())
    }

    /// Where content with this hash lies, or will lie.
    pub(crate) fn blob(&self, id: &ModelId, hash: &str) -> PathBuf {
        self.model(id).join("blobs").join(hash)
    }

    pub(crate) fn snapshot(&self, id: &ModelId, commit: &str) -> PathBuf {
        self.model(id).join("snapshots").join(commit)
    }

    /// The commit that a revision stood at when it was fetched; a commit stands for itself.
    pub(crate) fn commit(&self, id: &ModelId) -> Option<String> {
        let noted = self.model(id).join("refs").join(id.revision());
        match fs::read_to_string(noted) {
            Ok(commit) => Some(commit.trim().to_owned()).filter(|it| is_commit(it)),
            Err(_) => is_commit(id.revision()).then(|| id.revision().to_owned()),
        }
    }

    /// Notes which commit a revision stands at.
    pub(crate) fn set_commit(&self, id: &ModelId, commit: &str) -> Result<()> {
        let path = self.model(id).join("refs").join(id.revision());
        if id.revision() == commit {
            return Ok(());
        }
        let failed = |e| Error::file("writing", &path, e);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(commit.as_bytes()).map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }

    /// Gives a blob its name in a snapshot.
    pub(crate) fn link(&self, id: &ModelId, commit: &str, name: &str, hash: &str) -> Result<()> {
        let path = self.snapshot(id, commit).join(name);
        let failed = |e| Error::file("linking", &path, e);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(failed)?;
        if fs::metadata(&path).is_ok() {
            return Ok(());
        }
        // A dangling link of an earlier run is replaced.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let up = "../".repeat(name.split('/').count() + 1);
        let target = format!("{up}blobs/{hash}");
        match symlink(Path::new(&target), &path, &self.blob(id, hash)) {
            // Another program was quicker.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(failed),
        }
    }

    /// Waits for, and holds, the lock of one file of a model.
    pub(crate) fn lock(&self, id: &ModelId, hash: &str) -> Result<File> {
        let path = self.root.join(".locks").join(id.folder_name()).join(format!("{hash}.lock"));
        let failed = |e| Error::file("locking", &path, e);
        fs::create_dir_all(path.parent().unwrap_or(&self.root)).map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }

    /// Every model in the cache, by name and commit.
    pub(crate) fn models(&self) -> Result<Vec<CachedModel>> {
        let mut models = Vec::new();
        for folder in folders(&self.root)? {
            let Some(repo) = file_name(&folder).strip_prefix("models--") else { continue };
            let repo = repo.replace("--", "/");
            let revisions = revisions(&folder.join("refs"))?;
            for snapshot in folders(&folder.join("snapshots"))? {
                let commit = file_name(&snapshot).to_owned();
                let here = revisions.iter().filter(|(_, it)| *it == commit);
                models.push(CachedModel {
                    repo: repo.clone(),
                    revisions: here.map(|(name, _)| name.clone()).collect(),
                    bytes: bytes(&snapshot)?,
                    is_complete: is_complete(&snapshot),
                    folder: snapshot,
                    commit,
                });
            }
        }
        models.sort_by(|a, b| (&a.repo, &a.commit).cmp(&(&b.repo, &b.commit)));
        Ok(models)
    }

    /// Removes a model with all its revisions. Returns the bytes that were freed.
    pub(crate) fn remove(&self, id: &ModelId) -> Result<u64> {
        let folder = self.model(id);
        if !folder.is_dir() {
            let what = format!("{} is not in the cache {}", id.repo(), self.root.display());
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        let freed = bytes(&folder.join("blobs"))?;
        fs::remove_dir_all(&folder).map_err(|e| Error::file("removing", &folder, e))?;
        let locks = self.root.join(".locks").join(id.folder_name());
        match fs::remove_dir_all(&locks) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("removing", &locks, e))
            }
            _ => Ok(freed),
        }
    }
}

/// Whether a snapshot holds a config and all the weights that it names. A download that was broken
/// off leaves a snapshot that does not.
pub(crate) fn is_complete(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    if !has("config.json") {
        return false;
    }
    if has(WHOLE) {
        return true;
    }
    let Ok(index) = read(&snapshot.join(INDEX)) else { return false };
    let Ok(index) = serde_json::from_slice::<serde_json::Value>(&index) else { return false };
    let Some(shards) = index["weight_map"].as_object() else { return false };
    !shards.is_empty() && shards.values().all(|it| it.as_str().is_some_and(has))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|it| it.is_ascii_hexdigit())
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|it| it.to_str()).unwrap_or_default()
}

/// The folders in a folder; none where there is no such folder.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("reading", path, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::file("reading", path, e))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

/// Names of branches and tags, with the commits they stood at.
fn revisions(refs: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut open = vec![(refs.to_owned(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = format!("{prefix}{}", file_name(&path));
            if path.is_dir() {
                open.push((path, format!("{name}/")));
            } else if let Ok(commit) = fs::read_to_string(&path) {
                found.push((name, commit.trim().to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes of the files in a folder, through links; dangling links count nothing.
fn bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            match fs::metadata(&path) {
                Ok(it) if it.is_dir() => open.push(path),
                Ok(it) => sum += it.len(),
                Err(_) => {}
            }
        }
    }
    Ok(sum)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path, _blob: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Windows lets few users make links, so a file gets a second name there.
#[cfg(not(unix))]
fn symlink(_target: &Path, link: &Path, blob: &Path) -> io::Result<()> {
    fs::hard_link(blob, link)
}
