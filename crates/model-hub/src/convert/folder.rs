//! The folder that a conversion makes: whole or not there.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    checkpoint::{Checkpoint, read_object},
    foreign::SETTINGS_FILE,
    settings::{Conversion, Numbers},
    write::json_file,
};
use crate::{
    Error, ErrorKind, Result,
    files::{INDEX, regular},
};

/// In the result: what it was made from, and how.
const RECORD: &str = "conversion.json";

/// What tells one conversion from another: the settings, and the names, sizes and times of the files
/// that were read.
pub(super) fn record(checkpoint: &Checkpoint, conversion: &Conversion) -> Result<Value> {
    let mut hash = Sha256::new();
    let mut sources = carried(&checkpoint.folder)?;
    sources.extend(checkpoint.files.iter().cloned());
    sources.push(checkpoint.folder.join("config.json"));
    let settings = checkpoint.folder.join(SETTINGS_FILE);
    sources.extend(settings.exists().then_some(settings));
    for path in sources {
        let failed = |e| Error::file("reading", &path, e);
        let about = fs::metadata(&path).map_err(failed)?;
        let changed = about.modified().map_err(failed)?.duration_since(UNIX_EPOCH);
        let nanos = changed.map_or(0, |it| it.as_nanos());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hash.update(format!("{name}\n{}\n{nanos}\n", about.len()));
    }
    let source: String = hash.finalize().iter().map(|it| format!("{it:02x}")).collect();
    let numbers = match &conversion.numbers {
        Numbers::Kept => json!("kept"),
        Numbers::Dequantized => json!("dequantized"),
        Numbers::Quantized { scheme, recipe, rules } => json!({
            "mode": scheme.mode().as_str(),
            "bits": scheme.bits(),
            "group_size": scheme.group_size(),
            "recipe": recipe.map(|it| it.as_str()),
            "rules": rules.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
    };
    Ok(json!({
        "made_by": concat!("mlxgk ", env!("CARGO_PKG_VERSION")),
        "dtype": conversion.dtype.map(|it| it.as_str()),
        "layout": format!("{:?}", conversion.layout),
        "shard_bytes": conversion.shard_bytes,
        "numbers": numbers,
        "source_sha256": source,
    }))
}

/// A new folder under another name, with the lock that keeps others out.
#[derive(Debug)]
pub(super) struct Place {
    out: PathBuf,
    folder: PathBuf,
    lock: PathBuf,
    /// Held until the end.
    _held: File,
    is_finished: bool,
}

impl Place {
    /// Waits for another process that makes the same folder. `None` where it is there, with the same record.
    pub(super) fn take(out: &Path, record: &Value) -> Result<Option<Self>> {
        let Some(name) = out.file_name().map(|it| it.to_string_lossy().into_owned()) else {
            let what = format!("{} cannot be the name of a new folder", out.display());
            return Err(Error::new(ErrorKind::Settings, what));
        };
        if is_made(out, record)? {
            return Ok(None);
        }
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|e| Error::file("creating", parent, e))?;
        let lock = parent.join(format!(".{name}.lock"));
        let held = hold(&lock).map_err(|e| Error::file("locking", &lock, e))?;
        let folder = parent.join(format!(".{name}.incomplete"));
        let place = Self { out: out.to_owned(), folder, lock, _held: held, is_finished: false };
        if is_made(out, record)? {
            return Ok(None);
        }
        place.clear()?;
        let folder = &place.folder;
        fs::create_dir(folder).map_err(|e| Error::file("creating", folder, e))?;
        json_file(&folder.join(RECORD), record)?;
        Ok(Some(place))
    }

    /// Where to write.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Refuses a result of so many bytes, with what is carried over from a folder, where the disk has no room
    /// for it.
    pub(super) fn check_room(&self, bytes: u64, from: &Path) -> Result<()> {
        let mut needed = bytes;
        for path in carried(from)? {
            needed = needed.saturating_add(regular(&path)?);
        }
        match free(&self.folder) {
            Some(free) if free < needed => {
                let [needed, free] = [needed, free].map(|it| it as f64 / 1e9);
                let out = self.out.display();
                let what =
                    format!("{out} would take {needed:.1} GB, but its disk has {free:.1} GB free");
                Err(Error::new(ErrorKind::File, what))
            }
            _ => Ok(()),
        }
    }

    /// Gives the folder its name.
    pub(super) fn finish(mut self) -> Result<()> {
        fs::rename(&self.folder, &self.out).map_err(|e| Error::file("creating", &self.out, e))?;
        self.is_finished = true;
        Ok(())
    }

    /// Removes what an earlier run left.
    fn clear(&self) -> Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("removing", &self.folder, e))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_finished {
            // What failed is reported already; what is left is removed by the next run.
            let _ = self.clear();
        }
        let _ = fs::remove_file(&self.lock);
    }
}

/// Whether the folder is there, made as recorded. Another one in its place is an error; an empty one
/// is nothing.
fn is_made(out: &Path, record: &Value) -> Result<bool> {
    let mut entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::file("reading", out, e)),
    };
    if entries.next().is_none() {
        return Ok(false);
    }
    let path = out.join(RECORD);
    if path.is_file() && read_object(&path).is_ok_and(|it| Value::Object(it) == *record) {
        return Ok(true);
    }
    let what = format!(
        "{} exists, and is not what this conversion makes; remove it, or name another folder",
        out.display()
    );
    Err(Error::new(ErrorKind::Settings, what))
}

/// Holds a lock file. The process that held it before has removed it, so the file may be another by now.
fn hold(path: &Path) -> io::Result<File> {
    loop {
        let options = OpenOptions::new().create(true).truncate(false).write(true).clone();
        let file = options.open(path)?;
        file.lock()?;
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let held = file.metadata()?.ino();
    Ok(fs::metadata(path).is_ok_and(|it| it.ino() == held))
}

/// Elsewhere a file that is open is not removed.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

/// The bytes that a folder's disk has free, where that can be asked.
#[cfg(unix)]
fn free(folder: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(folder).ok()?;
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

#[cfg(not(unix))]
fn free(_folder: &Path) -> Option<u64> {
    None
}

/// Copies tokenizer, templates, generation config and licences.
pub(super) fn carry_over(from: &Path, to: &Path) -> Result<()> {
    for path in carried(from)? {
        let target = to.join(path.file_name().unwrap_or_default());
        fs::copy(&path, &target).map_err(|e| Error::file("copying", &path, e))?;
    }
    Ok(())
}

/// The files beside config and weights that a model's folder needs.
fn carried(folder: &Path) -> Result<Vec<PathBuf>> {
    const ENDINGS: [&str; 7] = ["jinja", "json", "jsonl", "model", "py", "tiktoken", "txt"];
    let is_carried = |name: &str| {
        let own = ["config.json", INDEX, RECORD, SETTINGS_FILE].contains(&name)
            || name.ends_with(".index.json");
        let ending = Path::new(name).extension().and_then(|it| it.to_str()).unwrap_or_default();
        let licence = name.starts_with("LICENSE") || name.starts_with("NOTICE");
        !own && (licence || ENDINGS.contains(&ending))
    };
    let failed = |e| Error::file("reading", folder, e);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        if is_carried(name) && !path.is_dir() {
            regular(&path)?;
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
