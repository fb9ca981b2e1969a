//! Files that are read only if they are files of a bearable length, and that are whole or not there, whenever
//! the process ends.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    time::Duration,
};

const PREFIX: &str = ".mlxgk-";
const SUFFIX: &str = ".tmp";

/// A file younger than this may be one that is just being made and not locked yet.
const YOUNG: Duration = Duration::from_secs(1);

/// The content of a file that a user has named, of at most so many bytes. A device or a named pipe is
/// refused, since reading it might never end; the pipe of a shell's `<(command)` is read.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("notes.json");
/// std::fs::write(&path, b"{}")?;
/// assert_eq!(mlxgk_steering::read_file(&path, 2)?, b"{}");
/// let error = mlxgk_steering::read_file(&path, 1).unwrap_err();
/// assert_eq!(error.to_string(), "it has 2 bytes, and at most 1 is read");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// When it cannot be read, is not a file, or is longer; that is seen before it is read.
pub fn read_file(path: impl AsRef<Path>, most: u64) -> io::Result<Vec<u8>> {
    let file = open_file(path, most)?;
    let mut bytes = Vec::with_capacity(file.metadata()?.len().min(most) as usize);
    // One byte more shows that there is more.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        length if length > most => Err(too_long(length, most)),
        _ => Ok(bytes),
    }
}

/// Opens such a file, for those who read it a part at a time. What a pipe holds has no length that could be
/// looked at before.
///
/// # Errors
/// As [`read_file`].
pub fn open_file(path: impl AsRef<Path>, most: u64) -> io::Result<File> {
    let path = path.as_ref();
    let kind = fs::metadata(path)?;
    if kind.is_dir() {
        return Err(io::Error::other("it is a folder, not a file"));
    }
    // No path leads to a pipe without a name.
    if !kind.is_file() && fs::canonicalize(path).is_ok() {
        return Err(io::Error::other("it is a device or a pipe, not a file"));
    }
    if kind.is_file() && kind.len() > most {
        return Err(too_long(kind.len(), most));
    }
    File::open(path)
}

fn too_long(length: u64, most: u64) -> io::Error {
    let (unit, of) = if most < 1 << 20 { ("bytes", 0) } else { ("MiB", 20) };
    let (length, most) = (length >> of, most >> of);
    let are = if most == 1 { "is" } else { "are" };
    io::Error::other(format!("it has {length} {unit}, and at most {most} {are} read"))
}

/// Writes a file by way of a temporary one beside it that nothing else has the name of, so that it is
/// whole or not there, after a loss of power too. What runs that were killed left in the folder is
/// removed first.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("notes.json");
/// mlxgk_steering::write_file(&path, b"{}")?;
/// assert_eq!(std::fs::read(&path)?, b"{}");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// When the folder cannot be written to; what was there is still there.
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    sweep(folder);
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    // As for any new file: what the umask leaves of it.
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    // A file system without locks has no sweeping either.
    let _ = file.as_file().try_lock();
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Removes temporary files that no living process holds the lock of.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours =
            name.to_str().is_some_and(|it| it.starts_with(PREFIX) && it.ends_with(SUFFIX));
        if is_ours && is_left_over(&entry.path()) {
            // Another process may have swept it by now.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_left_over(path: &Path) -> bool {
    let age = |it: fs::Metadata| it.modified().ok()?.elapsed().ok();
    let Ok(file) = File::open(path) else { return false };
    let is_old = file.metadata().ok().and_then(age).is_some_and(|it| it >= YOUNG);
    is_old && file.try_lock().is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_killed_runs_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, seconds: u64| {
            let path = folder.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
            (path, file)
        };
        let (old, _) = make(".mlxgk-old.tmp", 100);
        let (young, _) = make(".mlxgk-young.tmp", 0);
        let (other, _) = make("mine.tmp", 100);
        let (held, lock) = make(".mlxgk-held.tmp", 100);
        lock.lock().unwrap();
        let path = folder.path().join("result");
        write_file(&path, b"1").unwrap();
        assert!(!old.exists());
        assert!(young.exists() && other.exists() && held.exists());
        drop(lock);
        write_file(&path, b"2").unwrap();
        assert!(!held.exists());
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert!(write_file(folder.path().join("no/such"), b"").is_err());
    }
}
