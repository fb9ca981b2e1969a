//! What several texts have in common, kept once: blocks of columns in a tree.
//!
//! A block is some columns ([`PrefixScope::block`]) and never changes. Its key is a hash of the key
//! before it, its tokens and what was done to each of them; the first key is a hash of everything else
//! that columns depend on. So a key stands for a whole text, equal keys for equal columns, and nothing has
//! to be flushed when a model or a steering changes. On a hit the tokens are compared all the same.
//!
//! Layers keep the block's own columns, those with a window what can still be seen of them at the block's
//! end; those with sinks or a state keep what the next token sees there. So a text can be resumed at any
//! block.
//!
//! A folder on disk can keep blocks longer than memory does ([`PrefixStore::with_folder`]).

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mlx_rs::{
    Array,
    error::Exception,
    ops::{concatenate, indexing::TryIndexOp},
    transforms::eval,
};
use sha2::{Digest, Sha256};

use crate::{
    CacheOptions, CacheState, Column, Error, KvCache, LayerSpec, Result, RowId,
    buffer::Buffer,
    cache::Kept,
    columns::Format,
    prefix_folder::{PrefixFolder, Stored},
    row::{Filled, RowState},
    saved::{CacheDescription, LayerDescription},
};

/// Columns of a block where a layer keeps nothing but columns. Of what a text shares with earlier ones less
/// than a block has to be read again: of 2,000 tokens at most 3 %. Reading in passes as short costs up to
/// half as much again where weights have to be widened for each of them (docs/caches.md).
const SHORT: usize = 64;

/// Columns of a block where a layer keeps a state, or a bounded one all that it holds, at every block's end.
const LONG: usize = 256;

/// What was done to a token beside reading it: the name of the steering that moved it, `None` for none.
pub type Effect = Option<Arc<str>>;

pub(crate) type Key = [u8; 32];

/// Blocks of columns that texts have in common, bounded in bytes. A handle: clones share the blocks.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{CacheOptions, Column, KvCache, LayerSpec, PrefixScope, PrefixStore};
///
/// let (layers, options) = ([LayerSpec::Full], CacheOptions::new());
/// let store = PrefixStore::new(64 << 20);
/// let scope = PrefixScope::new("the model's fingerprint", &layers, &options, "");
///
/// let block = scope.block();
/// let text = vec![Column::Token(7); block];
/// let mut cache = KvCache::new(&layers, 1);
/// let new = zeros_dtype(&[1, 2, block as i32, 16], Dtype::Float32)?;
/// let mut pass = cache.begin(&[&text], &[])?;
/// pass.append(0, &new, &new)?;
/// pass.commit()?;
/// let none = vec![None; block + 1];
/// assert!(store.publish(&scope, &cache, &none[..block])?);
///
/// let longer = [&text[..], &[Column::Token(8)]].concat();
/// assert_eq!(store.find(&scope, &longer, &none)?.unwrap().len(), block);
/// assert!(store.find(&scope, &longer[1..], &none[1..])?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct PrefixStore {
    blocks: Arc<Mutex<Blocks>>,
    salt: Arc<str>,
}

/// What columns depend on besides the text: the root of a tree.
///
/// ```
/// use mlxgk_kv_cache::{CacheOptions, LayerSpec, PrefixScope};
///
/// let options = CacheOptions::new();
/// let scope = |layers: &[LayerSpec]| PrefixScope::new("fingerprint", layers, &options, "");
/// assert_eq!(scope(&[LayerSpec::Full]).block(), 64);
/// // What a recurrent layer keeps at the end of a block does not shrink with it.
/// assert_eq!(scope(&[LayerSpec::Full, LayerSpec::State]).block(), 256);
/// ```
#[derive(Debug, Clone)]
pub struct PrefixScope {
    root: Key,
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) options: CacheOptions,
}

/// What a store holds and did.
///
/// ```
/// use mlxgk_kv_cache::{CacheOptions, Column, LayerSpec, PrefixScope, PrefixStore};
///
/// let store = PrefixStore::new(64 << 20);
/// let scope = PrefixScope::new("fingerprint", &[LayerSpec::Full], &CacheOptions::new(), "");
/// let text = vec![Column::Token(7); 100];
/// assert!(store.find(&scope, &text, &vec![None; 100])?.is_none());
/// let counters = store.counters();
/// println!("{} of {} columns were found", counters.found, counters.asked);
/// assert_eq!((counters.blocks, counters.bytes, counters.found), (0, 0, 0));
/// # Ok::<(), mlxgk_kv_cache::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrefixCounters {
    /// Blocks held.
    pub blocks: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Columns that were asked for.
    pub asked: u64,
    /// Columns that were found.
    pub found: u64,
    /// Blocks that had to make room for others.
    pub evicted: u64,
    /// Blocks that found no room.
    pub refused: u64,
    /// Blocks that were read from the folder.
    pub loaded: u64,
    /// Files of the folder that were removed because they were not the blocks that their names say.
    pub damaged: u64,
    /// Blocks that could not be written to the folder.
    pub unwritten: u64,
}

#[derive(Debug)]
struct Blocks {
    limit: usize,
    held: HashMap<Key, Block>,
    folder: Option<PrefixFolder>,
    /// Counts uses, so that the least recent one is known.
    clock: u64,
    counters: PrefixCounters,
}

/// What a block keeps of a layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Piece {
    pub(crate) arrays: Vec<Array>,
    /// Of a bounded layer, whose buffer is kept with its room: the column after the slots. What such a
    /// layer shows, though a mask hides it, depends on when its buffer moved, and with it the rounding.
    pub(crate) first: usize,
}

/// A block's text, and what was done to its tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'t> {
    pub(crate) columns: &'t [Column],
    pub(crate) effects: &'t [Effect],
    /// Columns up to the block's end, from the first on.
    pub(crate) end: usize,
}

#[derive(Debug)]
struct Block {
    parent: Key,
    children: usize,
    columns: Vec<Column>,
    effects: Vec<Effect>,
    /// By layer.
    kept: Vec<Piece>,
    bytes: usize,
    used: u64,
}

impl PrefixScope {
    /// For caches of a model with this fingerprint (weights, adapters and dtype), whose layers see what
    /// `layers` say under `options`. Texts under different salts share nothing: what one user asked is not to
    /// be inferred from how soon another is answered.
    pub fn new(
        fingerprint: &str,
        layers: &[LayerSpec],
        options: &CacheOptions,
        salt: &str,
    ) -> Self {
        let mut hash = Sha256::new();
        for part in
            ["mlxgk prefix 2", fingerprint, &format!("{layers:?}"), &format!("{options:?}"), salt]
        {
            note(&mut hash, part.as_bytes());
        }
        let root = hash.finalize().into();
        Self { root, layers: layers.to_vec(), options: options.clone() }
    }

    /// Columns of a block. A text is read in passes that end where blocks do: after each 64 columns, or each
    /// 256 where a layer has a state or is bounded, since what such a layer keeps at a block's end does not
    /// shrink with the block.
    pub fn block(&self) -> usize {
        let sights = self.layers.iter().map(|&it| self.options.sight(it));
        let is_whole = |it| matches!(it, LayerSpec::State | LayerSpec::Bounded { .. });
        if sights.into_iter().any(is_whole) { LONG } else { SHORT }
    }

    /// Columns that a layer keeps of a block, where it keeps columns and neither sinks nor a state.
    pub(crate) fn columns_of_block(&self, sight: LayerSpec) -> usize {
        sight.newest().map_or(self.block(), |it| it.min(self.block()))
    }

    /// Whether blocks of such caches can be put together: not where columns are packed from some column
    /// on only, or nothing is kept.
    fn is_storable(&self) -> bool {
        !self.options.single_pass && self.options.quantization.is_none_or(|it| it.start == 0)
    }

    /// The keys of a text's whole blocks.
    fn keys<'t>(
        &'t self,
        columns: &'t [Column],
        effects: &'t [Effect],
    ) -> impl Iterator<Item = (Key, Text<'t>)> {
        let block = self.block();
        let blocks = columns.chunks_exact(block).zip(effects.chunks_exact(block));
        let blocks = (1..).zip(blocks);
        blocks.scan(self.root, move |parent, (count, (columns, effects))| {
            let mut hash = Sha256::new();
            note(&mut hash, &*parent);
            for column in columns {
                let (kind, number) = match column {
                    Column::Token(it) => (0, u64::from(*it)),
                    Column::Embedded(it) => (1, *it),
                };
                hash.update([kind]);
                hash.update(number.to_le_bytes());
            }
            for effect in effects {
                match effect {
                    None => hash.update([0]),
                    Some(name) => {
                        hash.update([1]);
                        note(&mut hash, name.as_bytes());
                    }
                }
            }
            *parent = hash.finalize().into();
            Some((*parent, Text { columns, effects, end: count * block }))
        })
    }
}

/// A field of a hash, with its length before it, so that no two lists of fields are one.
fn note(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

impl PrefixStore {
    /// An empty store of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let blocks = Blocks {
            limit,
            held: HashMap::new(),
            folder: None,
            clock: 0,
            counters: PrefixCounters::default(),
        };
        Self { blocks: Arc::new(Mutex::new(blocks)), salt: "".into() }
    }

    /// Keeps blocks in a folder, too, in files of at most `limit` bytes together: for longer than there is
    /// memory for them, and than the process lives. Other processes may use the same folder. It is made
    /// where it is not there; all clones of this handle use it from then on.
    ///
    /// Each block is a file of its own with a checksum, named by its key. A file that is not what its name
    /// says is removed, and its block is read again; files with names of another kind are left alone. **The
    /// files hold the texts' tokens**, and can be read by whom the folder lets.
    ///
    /// ```
    /// use mlxgk_kv_cache::PrefixStore;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let store = PrefixStore::new(64 << 20).with_folder(folder.path(), 1 << 30)?;
    /// assert_eq!(store.counters().loaded, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When the folder cannot be made or written to.
    pub fn with_folder(self, folder: impl Into<PathBuf>, limit: u64) -> Result<Self> {
        self.lock().folder = Some(PrefixFolder::open(folder.into(), limit)?);
        Ok(self)
    }

    /// A handle on the same blocks whose texts share nothing with those under other salts.
    #[must_use]
    pub fn salted(&self, salt: impl Into<Arc<str>>) -> Self {
        Self { salt: salt.into(), ..self.clone() }
    }

    /// The salt: see [`PrefixScope::new`].
    pub fn salt(&self) -> &str {
        &self.salt
    }

    /// A cache of as many whole blocks as the store holds of a text, `effects` being what is done to each
    /// of its tokens; `None` where it holds not even the first. The cache can be continued under any
    /// steering, because its tokens were compared by what was done to them.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn find(
        &self,
        scope: &PrefixScope,
        columns: &[Column],
        effects: &[Effect],
    ) -> Result<Option<KvCache>> {
        let mut blocks = self.lock();
        let (mut path, mut chain) = (Vec::new(), Vec::new());
        for (key, text) in scope.keys(columns, effects) {
            let Some(kept) = blocks.get(scope, &path, key, text) else { break };
            path.push(key);
            chain.push(kept);
        }
        blocks.counters.asked += columns.len() as u64;
        blocks.counters.found += (chain.len() * scope.block()) as u64;
        blocks.touch(&path);
        if let Some(folder) = &mut blocks.folder {
            folder.touch(&path);
        }
        let Some(last) = chain.last() else { return Ok(None) };
        together(scope, &chain, last, &columns[..chain.len() * scope.block()]).map(Some)
    }

    /// Takes in the last block of a cache that holds a whole number of them, `effects` being what was done
    /// to each of its tokens. Returns whether the block is in memory now: it has to follow one that is, and
    /// to find room once those that were used least recently, and that none follows, have left.
    ///
    /// # Errors
    /// When the cache has not one row without padding, or does not end where a block does, or MLX fails.
    pub fn publish(
        &self,
        scope: &PrefixScope,
        cache: &KvCache,
        effects: &[Effect],
    ) -> Result<bool> {
        let ([row], true) = (&cache.rows[..], cache.len().is_multiple_of(scope.block())) else {
            return Err(Error::argument("blocks are of one row that ends where a block does"));
        };
        if row.padding > 0 || cache.is_empty() || effects.len() != cache.len() {
            let what = "blocks are of a row without padding, with what was done to each token";
            return Err(Error::argument(what));
        }
        if !scope.is_storable() || cache.options != scope.options {
            return Ok(false);
        }
        let mut blocks = self.lock();
        let keys: Vec<_> = scope.keys(&row.columns, effects).collect();
        let Some((&(key, text), before)) = keys.split_last() else { return Ok(false) };
        let path: Vec<Key> = before.iter().map(|it| it.0).collect();
        let follows = path.iter().all(|it| blocks.held.contains_key(it));
        if follows {
            blocks.touch(&path);
        }
        let is_wanted = follows && !blocks.held.contains_key(&key);
        let is_unwritten = blocks.folder.as_ref().is_some_and(|it| !it.contains(&key));
        if is_wanted || is_unwritten {
            let kept = pieces(scope, cache)?;
            if let Some(folder) = blocks.folder.as_mut().filter(|_| is_unwritten)
                && folder.write(&key, text, &kept).is_err()
            {
                blocks.counters.unwritten += 1;
            }
            if is_wanted && !blocks.insert(scope, &path, (key, text), kept) {
                blocks.counters.refused += 1;
            }
        }
        blocks.touch(&[key]);
        if let Some(folder) = &mut blocks.folder {
            folder.touch(&keys.iter().map(|it| it.0).collect::<Vec<Key>>());
        }
        Ok(blocks.held.contains_key(&key))
    }

    /// What it holds and did.
    pub fn counters(&self) -> PrefixCounters {
        self.lock().counters
    }

    /// The bytes that it holds at most.
    pub fn limit(&self) -> usize {
        self.lock().limit
    }

    /// Forgets every block, in memory and in the folder.
    pub fn clear(&self) {
        let mut blocks = self.lock();
        if let Some(folder) = &blocks.folder {
            folder.clear();
        }
        blocks.held.clear();
        (blocks.counters.blocks, blocks.counters.bytes) = (0, 0);
    }

    /// A failed operation leaves the blocks as they were.
    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks {
    /// What the layers keep of a block that follows those of `path`, from memory or the folder.
    fn get(
        &mut self,
        scope: &PrefixScope,
        path: &[Key],
        key: Key,
        text: Text<'_>,
    ) -> Option<Vec<Piece>> {
        if let Some(block) = self.held.get(&key) {
            let is_same = block.columns == text.columns && block.effects == text.effects;
            return is_same.then(|| block.kept.clone());
        }
        match self.folder.as_ref()?.read(scope, &key, text) {
            Stored::Absent => None,
            Stored::Damaged => {
                self.counters.damaged += 1;
                None
            }
            Stored::Block(kept) => {
                self.counters.loaded += 1;
                if path.iter().all(|it| self.held.contains_key(it)) {
                    self.insert(scope, path, (key, text), kept.clone());
                }
                Some(kept)
            }
        }
    }

    /// Holds a block after those of `path`, where there is room or can be made.
    fn insert(
        &mut self,
        scope: &PrefixScope,
        path: &[Key],
        (key, text): (Key, Text<'_>),
        kept: Vec<Piece>,
    ) -> bool {
        let Text { columns, effects, .. } = text;
        let arrays = kept.iter().flat_map(|it| &it.arrays).map(Array::nbytes).sum::<usize>();
        let names = effects.iter().flatten().map(|it| it.len()).max().unwrap_or(0);
        let bytes = arrays + names + columns.len() * (size_of::<Column>() + size_of::<Effect>());
        if !self.make_room(bytes, path) {
            return false;
        }
        let parent = path.last().copied().unwrap_or(scope.root);
        if let Some(parent) = self.held.get_mut(&parent) {
            parent.children += 1;
        }
        let (columns, effects) = (columns.to_vec(), effects.to_vec());
        let block = Block { parent, children: 0, columns, effects, kept, bytes, used: 0 };
        self.held.insert(key, block);
        self.counters.bytes += bytes;
        self.counters.blocks += 1;
        true
    }

    /// Notes that a text was used, the end of it before its beginning: what others may begin with, too,
    /// leaves last.
    fn touch(&mut self, path: &[Key]) {
        for key in path.iter().rev() {
            self.clock += 1;
            if let Some(block) = self.held.get_mut(key) {
                block.used = self.clock;
            }
        }
    }

    /// Lets blocks leave until there is room for so many bytes more, but none of `path`.
    fn make_room(&mut self, bytes: usize, path: &[Key]) -> bool {
        if bytes > self.limit {
            return false;
        }
        while self.counters.bytes + bytes > self.limit {
            let leaves = self.held.iter().filter(|(_, it)| it.children == 0);
            let leaves = leaves.filter(|(key, _)| !path.contains(key));
            let Some(key) = leaves.min_by_key(|(_, it)| it.used).map(|(key, _)| *key) else {
                return false;
            };
            self.remove(key);
            self.counters.evicted += 1;
        }
        true
    }

    fn remove(&mut self, key: Key) {
        let Some(block) = self.held.remove(&key) else { return };
        if let Some(parent) = self.held.get_mut(&block.parent) {
            parent.children -= 1;
        }
        self.counters.bytes -= block.bytes;
        self.counters.blocks -= 1;
    }
}

/// A cache of the blocks of a text, the last of which is `last`.
fn together(
    scope: &PrefixScope,
    chain: &[Vec<Piece>],
    last: &[Piece],
    columns: &[Column],
) -> Result<KvCache> {
    let failed = |e: Exception| Error::mlx("putting blocks together", &e);
    let mut described = Vec::new();
    let mut state = BTreeMap::new();
    let format = scope.options.quantization.map_or(Format::Dense, Format::Quantized);
    let mut bounded = Vec::new();
    for (index, &spec) in scope.layers.iter().enumerate() {
        let mut layer = LayerDescription { spec, first: 0, quantization: None, states: 0 };
        let sight = scope.options.sight(spec);
        let kept = &last[index];
        let mut put = |names: &[String], arrays: Vec<Array>| {
            for (name, array) in names.iter().zip(arrays) {
                state.insert(format!("layers.{index}.{name}"), array);
            }
        };
        let names: Vec<String> = format.names().iter().map(|it| (*it).to_owned()).collect();
        if sight.has_columns() {
            layer.quantization = scope.options.quantization;
        }
        match sight {
            LayerSpec::Shared { .. } | LayerSpec::Nothing => {}
            LayerSpec::State => {
                layer.states = kept.arrays.len();
                let names: Vec<String> =
                    (0..layer.states).map(|it| format!("state.{it}")).collect();
                put(&names, kept.arrays.clone());
            }
            LayerSpec::Full | LayerSpec::Sliding { .. } | LayerSpec::Chunked { .. } => {
                let blocks = sight.newest().map_or(chain.len(), |it| it.div_ceil(scope.block()));
                let blocks = &chain[chain.len().saturating_sub(blocks)..];
                let whole = |part: usize| {
                    let parts: Vec<&Array> =
                        blocks.iter().map(|it| &it[index].arrays[part]).collect();
                    let whole = concatenate(&parts, 2)?;
                    let newest = sight.newest().map_or(0, |it| (whole.dim(2) - it as i32).max(0));
                    whole.try_index((.., .., newest.., ..))
                };
                let whole = (0..kept.arrays.len()).map(whole).collect::<Result<Vec<_>, _>>();
                let whole = whole.map_err(failed)?;
                layer.first = columns.len() - whole.first().map_or(0, |it| it.dim(2) as usize);
                put(&names, whole);
            }
            LayerSpec::Bounded { sinks, .. } => {
                layer.first = kept.first;
                let held = (sinks + columns.len() - kept.first) as i32;
                let used = |it: &Array| it.try_index((.., .., ..held, ..));
                let used = kept.arrays.iter().map(used).collect::<Result<_, _>>();
                put(&names, used.map_err(failed)?);
                let arrays = kept.arrays.clone();
                bounded.push((index, Buffer::holding(arrays, format, sinks, kept.first)));
            }
        }
        described.push(layer);
    }
    let mut row = RowState::new(RowId::new(0), 0);
    row.columns = columns.to_vec();
    row.filled = Filled::Any;
    let description = CacheDescription::of_row(described, scope.options.clone(), row, 0);
    let mut cache = KvCache::from_state(&CacheState { arrays: state, description })?;
    for (index, buffer) in bounded {
        cache.layers[index].kept = Kept::Columns(buffer);
    }
    Ok(cache)
}

/// What a block keeps of a cache that ends with it, evaluated, in arrays of its own: a handle on the
/// cache's would keep those from being written in place.
fn pieces(scope: &PrefixScope, cache: &KvCache) -> Result<Vec<Piece>> {
    let len = cache.len();
    let own = |array: &Array, from: usize| {
        let places: Vec<i32> = (from as i32..array.dim(2)).collect();
        array.take_axis(Array::from_slice(&places, &[places.len() as i32]), 2)
    };
    let copied = |buffer: &Buffer, sight: LayerSpec| -> Result<Piece, Exception> {
        let copy = |array: &Array| match sight {
            LayerSpec::Bounded { .. } => own(array, 0),
            _ => {
                let end = len - buffer.first;
                let used = array.try_index((.., .., ..end as i32, ..))?;
                own(&used, end - scope.columns_of_block(sight))
            }
        };
        let arrays = buffer.arrays.iter().map(copy).collect::<Result<_, _>>()?;
        Ok(Piece { arrays, first: buffer.first })
    };
    let mut kept = Vec::new();
    for layer in &cache.layers {
        kept.push(match &layer.kept {
            Kept::Nothing => Piece::default(),
            Kept::State(state) => Piece { arrays: state.clone(), first: 0 },
            Kept::Columns(buffer) => {
                copied(buffer, layer.sight).map_err(|e| Error::mlx("copying a block", &e))?
            }
        });
    }
    let arrays = kept.iter().flat_map(|it| &it.arrays);
    eval(arrays).map_err(|e| Error::mlx("copying a block", &e))?;
    Ok(kept)
}
