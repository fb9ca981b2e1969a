//! Blocks of a prefix store as files of a folder, which processes may share.
//!
//! A file is the SHA-256 of all that follows, and a safetensors file. It is written under a temporary name
//! and renamed, so that a reader finds all of it or nothing. A file's time of modification is when
//! its block was last used. A writer holds the lock of the folder, so that the files together never
//! exceed the limit, however many processes there are.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use mlx_rs::Array;
use sha2::{Digest, Sha256};

use crate::{
    Column, Error, LayerSpec, Result,
    columns::Format,
    file::Container,
    prefixes::{Key, Piece, PrefixScope, Text},
};

/// Ends the names of blocks.
const BLOCK_FILE: &str = ".block";
/// Begins the names of blocks that are being written.
const UNFINISHED: &str = ".unfinished-";
/// The file whose lock is the folder's.
const LOCK: &str = ".lock";
/// Bytes of the checksum.
const CHECKSUM: usize = 32;

#[derive(Debug)]
pub(crate) struct PrefixFolder {
    path: PathBuf,
    limit: u64,
    /// The latest time that a file was given.
    latest: SystemTime,
}

/// What a folder has of a block.
#[derive(Debug)]
pub(crate) enum Stored {
    Absent,
    /// Something else, which was removed.
    Damaged,
    /// By layer.
    Block(Vec<Piece>),
}

/// What the arrays of a file are.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Description {
    columns: Vec<Column>,
    effects: Vec<Option<String>>,
    layers: Vec<DescribedPiece>,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct DescribedPiece {
    arrays: usize,
    first: usize,
}

impl PrefixFolder {
    pub(crate) fn open(path: PathBuf, limit: u64) -> Result<Self> {
        let folder = Self { path, limit, latest: SystemTime::UNIX_EPOCH };
        // Also makes room where the limit was a higher one before.
        let opened =
            fs::create_dir_all(&folder.path).and_then(|()| folder.locked(|| folder.make_room(0)));
        opened.map_err(|e| {
            let path = folder.path.display();
            Error::write(format!("{path} cannot be a folder of prefixes: {e}"))
        })?;
        Ok(folder)
    }

    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.file(key).is_file()
    }

    /// The block of this key, where it is one of this text; any other file is removed.
    pub(crate) fn read(&self, scope: &PrefixScope, key: &Key, text: Text<'_>) -> Stored {
        let path = self.file(key);
        let Ok(bytes) = fs::read(&path) else { return Stored::Absent };
        match parse(&bytes, scope, key, text) {
            Some(kept) => Stored::Block(kept),
            None => {
                // What cannot be removed stays, and is as little believed the next time.
                _ = fs::remove_file(path);
                Stored::Damaged
            }
        }
    }

    /// Writes a block, once those that were used least recently have left. One that is larger than the
    /// limit is an error.
    pub(crate) fn write(&mut self, key: &Key, text: Text<'_>, kept: &[Piece]) -> Result<()> {
        let bytes = to_bytes(key, text, kept)?;
        let used = self.next_time();
        let written = self.locked(|| {
            self.make_room(bytes.len() as u64)?;
            let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.path)?;
            // Not synced: what a crash of the machine leaves incomplete, the checksum tells.
            file.write_all(&bytes)?;
            file.as_file().set_modified(used)?;
            file.persist(self.file(key))?;
            Ok(())
        });
        written.map_err(|e| Error::write(format!("cannot write to {}: {e}", self.path.display())))
    }

    /// Notes that a text was used, its end before its beginning, which thereby leaves last.
    pub(crate) fn touch(&mut self, path: &[Key]) {
        for key in path.iter().rev() {
            let used = self.next_time();
            // A block that another process removed was not used.
            if let Ok(file) = File::options().append(true).open(self.file(key)) {
                _ = file.set_modified(used);
            }
        }
    }

    /// Removes every block.
    pub(crate) fn clear(&self) {
        _ = self.locked(|| {
            for (_, _, path) in self.blocks()? {
                remove(&path)?;
            }
            Ok(())
        });
    }

    /// Later than all times before, also within a tick of the clock.
    fn next_time(&mut self) -> SystemTime {
        self.latest = SystemTime::now().max(self.latest + Duration::from_nanos(100));
        self.latest
    }

    fn file(&self, key: &Key) -> PathBuf {
        self.path.join(hex(key) + BLOCK_FILE)
    }

    /// Does something while no other process adds or removes.
    fn locked(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let path = self.path.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(path)?;
        lock.lock()?;
        act()
    }

    /// Removes files until there is room for so many bytes more.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        if bytes > self.limit {
            let what =
                format!("a block of {bytes} bytes is larger than the limit of {}", self.limit);
            return Err(io::Error::other(what));
        }
        let mut blocks = self.blocks()?;
        blocks.sort();
        let mut held: u64 = blocks.iter().map(|(_, bytes, _)| bytes).sum();
        let mut oldest = blocks.into_iter();
        while held + bytes > self.limit {
            let Some((_, bytes, path)) = oldest.next() else { break };
            remove(&path)?;
            held -= bytes;
        }
        Ok(())
    }

    /// When each block was last used, its bytes and its file. What a process that was killed left
    /// unfinished is removed, for the lock says that nobody is at it.
    fn blocks(&self) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
        let mut blocks = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.starts_with(UNFINISHED) {
                remove(&path)?;
            } else if is_block(&name)
                && let Ok(about) = entry.metadata()
            {
                blocks.push((about.modified()?, about.len(), path));
            }
        }
        Ok(blocks)
    }
}

/// Removes a file that may be gone.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn is_block(name: &str) -> bool {
    let key = name.strip_suffix(BLOCK_FILE);
    key.is_some_and(|it| {
        it.len() == 2 * size_of::<Key>() && it.bytes().all(|it| it.is_ascii_hexdigit())
    })
}

fn hex(key: &Key) -> String {
    key.iter().fold(String::new(), |mut text, byte| {
        // A string takes whatever is written to it.
        _ = write!(text, "{byte:02x}");
        text
    })
}

fn array_name(layer: usize, array: usize) -> String {
    format!("layers.{layer}.{array}")
}

fn to_bytes(key: &Key, text: Text<'_>, kept: &[Piece]) -> Result<Vec<u8>> {
    let layers = kept.iter().map(|it| DescribedPiece { arrays: it.arrays.len(), first: it.first });
    let description = Description {
        columns: text.columns.to_vec(),
        effects: text.effects.iter().map(|it| it.as_deref().map(str::to_owned)).collect(),
        layers: layers.collect(),
    };
    let mut container = Container::default();
    container.metadata.insert("key".into(), hex(key));
    container.metadata.insert("block".into(), serde_json::json!(description).to_string());
    for (layer, piece) in kept.iter().enumerate() {
        for (array, it) in piece.arrays.iter().enumerate() {
            container.tensors.insert(array_name(layer, array), it.clone());
        }
    }
    let bytes = container.to_bytes()?;
    Ok([&Sha256::digest(&bytes)[..], &bytes].concat())
}

/// `None` where the bytes are not a block of this key and text.
fn parse(bytes: &[u8], scope: &PrefixScope, key: &Key, text: Text<'_>) -> Option<Vec<Piece>> {
    let (checksum, bytes) = bytes.split_at_checked(CHECKSUM)?;
    if Sha256::digest(bytes)[..] != *checksum {
        return None;
    }
    let Container { mut tensors, metadata } = Container::parse(bytes).ok()?;
    let description: Description = serde_json::from_str(metadata.get("block")?).ok()?;
    let effects = description.effects.iter().map(Option::as_deref);
    let is_same = metadata.get("key")? == &hex(key)
        && description.columns == text.columns
        && effects.eq(text.effects.iter().map(Option::as_deref))
        && description.layers.len() == scope.layers.len();
    if !is_same {
        return None;
    }
    let mut kept = Vec::new();
    for (layer, described) in description.layers.iter().enumerate() {
        let arrays = (0..described.arrays).map(|it| tensors.remove(&array_name(layer, it)));
        let piece = Piece { arrays: arrays.collect::<Option<_>>()?, first: described.first };
        fits(&piece, scope, layer, text.end).then_some(())?;
        kept.push(piece);
    }
    tensors.is_empty().then_some(kept)
}

/// Whether a piece has what a layer of this kind keeps of `len` columns.
fn fits(piece: &Piece, scope: &PrefixScope, layer: usize, len: usize) -> bool {
    let format = scope.options.quantization.map_or(Format::Dense, Format::Quantized);
    let sight = scope.options.sight(scope.layers[layer]);
    let is_row = |it: &Array| it.ndim() > 0 && it.dim(0) == 1;
    let has_columns = |is_right: &dyn Fn(usize) -> bool| {
        let is_right = |it: &Array| it.ndim() == 4 && is_right(it.dim(2) as usize);
        piece.arrays.len() == format.names().len() && piece.arrays.iter().all(is_right)
    };
    piece.arrays.iter().all(is_row)
        && match sight {
            LayerSpec::Shared { .. } | LayerSpec::Nothing => piece.arrays.is_empty(),
            LayerSpec::State => true,
            LayerSpec::Full | LayerSpec::Sliding { .. } | LayerSpec::Chunked { .. } => {
                has_columns(&|it| it == scope.columns_of_block(sight))
            }
            LayerSpec::Bounded { sinks, .. } => {
                piece.first <= len && has_columns(&|it| it >= sinks + len - piece.first)
            }
        }
}
