//! The folder of a prefix store against a naive map: what is found, what leaves, what damage does, and that
//! processes can share it.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use mlxgk_kv_cache::{CacheOptions, KvCache, PrefixScope, PrefixStore};

mod texts;

use texts::{Kind, Text, hash};

/// Numbers without a pattern.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % limit
    }

    fn text(&mut self) -> Text {
        let len = 1 + self.below(4);
        (0..len).map(|_| (self.below(2) as u32, self.below(2) as u8)).collect()
    }
}

/// A block's file as a naive map knows it.
struct Known {
    file: PathBuf,
    bytes: u64,
    used: u64,
    is_damaged: bool,
}

#[derive(Default)]
struct Naive {
    limit: u64,
    clock: u64,
    files: BTreeMap<Text, Known>,
}

impl Naive {
    fn touch(&mut self, text: &[(u32, u8)]) {
        for len in (1..=text.len()).rev() {
            self.clock += 1;
            if let Some(known) = self.files.get_mut(&text[..len]) {
                known.used = self.clock;
            }
        }
    }

    /// How many blocks of a text are found, when memory holds none.
    fn find(&mut self, text: &[(u32, u8)]) -> usize {
        let is_whole = |len: &usize| self.files.get(&text[..*len]).is_some_and(|it| !it.is_damaged);
        let found = (1..=text.len()).take_while(is_whole).count();
        // What is found to be damaged is gone.
        if found < text.len() {
            self.files.remove(&text[..=found]);
        }
        self.touch(&text[..found]);
        found
    }

    /// A file has been written for a text's last block, where there was none.
    fn publish(&mut self, text: &[(u32, u8)], files: &BTreeMap<PathBuf, u64>) {
        if !self.files.contains_key(text) {
            let is_new = |it: &&PathBuf| !self.files.values().any(|known| known.file == **it);
            let file = files.keys().find(is_new).unwrap().clone();
            let bytes = files[&file];
            while self.bytes() + bytes > self.limit {
                let oldest = self.files.iter().min_by_key(|(_, it)| it.used).unwrap().0.clone();
                self.files.remove(&oldest);
            }
            let known = Known { file, bytes, used: 0, is_damaged: false };
            self.files.insert(text.to_vec(), known);
        }
        self.touch(text);
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|it| it.bytes).sum()
    }
}

/// The files of blocks, and their bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = fs::read_dir(folder).unwrap().map(|it| it.unwrap());
    let blocks = entries.filter(|it| it.path().extension() == Some(&OsString::from("block")));
    blocks.map(|it| (it.path(), it.metadata().unwrap().len())).collect()
}

/// Damages a file in one of many ways, and leaves its time as it was.
fn damage(draw: &mut Draw, path: &Path, other: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    match draw.below(5) {
        0 => {
            let at = draw.below(bytes.len());
            bytes[at] ^= 1 << draw.below(8);
        }
        1 => bytes.truncate(draw.below(bytes.len())),
        2 => bytes.push(0),
        3 => bytes = b"not a block".to_vec(),
        // A whole file, but of another block.
        _ => bytes = fs::read(other).unwrap(),
    }
    fs::write(path, bytes).unwrap();
    File::options().append(true).open(path).unwrap().set_modified(modified).unwrap();
}

/// Reads a text from a store and gives it what is missing. Returns how many blocks were found.
fn read(
    store: &PrefixStore,
    kind: &Kind,
    text: &[(u32, u8)],
    mut published: impl FnMut(usize),
) -> (usize, KvCache) {
    let (columns, effects) = kind.columns(text);
    let found = store.find(&kind.scope, &columns, &effects).unwrap();
    let mut cache = found.unwrap_or_else(|| kind.empty());
    let held = cache.len() / kind.block();
    for blocks in held + 1..=text.len() {
        kind.feed(&mut cache, &text[..blocks]);
        store.publish(&kind.scope, &cache, &effects[..blocks * kind.block()]).unwrap();
        published(blocks);
    }
    (held, cache)
}

#[test]
fn blocks_are_kept_in_a_folder_as_in_a_naive_map() {
    for kind in Kind::all() {
        let folder = tempfile::tempdir().unwrap();
        let open = |limit| PrefixStore::new(0).with_folder(folder.path(), limit).unwrap();
        let limit = limit(&open(u64::MAX), folder.path(), &kind);
        // Two processes with the folder in common, as far as the folder can tell.
        let mut stores = [open(limit), open(limit)];
        let mut naive = Naive { limit, ..Naive::default() };
        let mut draw = Draw(7);
        let (mut all_found, mut damaged) = (0, 0);
        for _ in 0..150 {
            let which = draw.below(2);
            if draw.below(8) == 0 {
                // A process starts again.
                damaged += stores[which].counters().damaged;
                stores[which] = open(limit);
            }
            if draw.below(2) == 0 && naive.files.len() > 1 {
                let count = naive.files.len();
                let one = draw.below(count);
                let other = naive.files.values().nth((one + 1) % count).unwrap().file.clone();
                let known = naive.files.values_mut().nth(one).unwrap();
                damage(&mut draw, &known.file, &other);
                known.is_damaged = true;
                known.bytes = fs::metadata(&known.file).unwrap().len();
            }
            let text = draw.text();
            let expected = naive.find(&text);
            let (found, cache) = read(&stores[which], &kind, &text, |blocks| {
                let files = files(folder.path());
                naive.publish(&text[..blocks], &files);
                let known = naive.files.values().map(|it| (it.file.clone(), it.bytes));
                assert_eq!(files, known.collect(), "{:?}", &text[..blocks]);
                assert!(naive.bytes() <= limit);
            });
            assert_eq!(found, expected, "{text:?}");
            assert_eq!(hash(cache), hash(kind.alone(&text)), "{text:?}");
            all_found += found;
        }
        damaged += stores.iter().map(|it| it.counters().damaged).sum::<u64>();
        assert!(all_found > 60 && damaged > 10, "{all_found} found, {damaged} damaged");
        // Texts under another salt, model or kind of cache are others.
        let whole = naive.files.iter().find(|(text, it)| text.len() == 1 && !it.is_damaged);
        let (columns, effects) = kind.columns(whole.unwrap().0);
        assert!(stores[0].find(&kind.scope, &columns, &effects).unwrap().is_some());
        for other in [
            PrefixScope::new("model", kind.layers, &kind.options, "salt"),
            PrefixScope::new("other", kind.layers, &kind.options, ""),
            PrefixScope::new("model", kind.layers, &CacheOptions::new().bounded(1, 9), ""),
        ] {
            assert!(stores[0].find(&other, &columns, &effects).unwrap().is_none());
        }
    }
}

/// Room for nine blocks.
fn limit(store: &PrefixStore, folder: &Path, kind: &Kind) -> u64 {
    read(store, kind, &[(0, 1)], |_| ());
    let one = files(folder).into_values().sum::<u64>();
    store.clear();
    assert!(one > 0 && files(folder).is_empty());
    9 * one + 20
}

#[test]
fn what_left_memory_is_found_in_the_folder() {
    for kind in Kind::all() {
        let folder = tempfile::tempdir().unwrap();
        // Room in memory for two blocks.
        let open = |limit: u64| {
            PrefixStore::new((limit / 4) as usize).with_folder(folder.path(), limit).unwrap()
        };
        let limit = limit(&open(u64::MAX), folder.path(), &kind);
        let mut store = open(limit);
        let mut draw = Draw(11);
        let mut sums = [0; 3];
        let mut note = |store: &PrefixStore| {
            let it = store.counters();
            assert!(it.bytes <= store.limit() && it.unwritten == 0, "{it:?}");
            sums = [sums[0] + it.loaded, sums[1] + it.damaged, sums[2] + it.evicted];
        };
        for _ in 0..100 {
            if draw.below(20) == 0 {
                note(&store);
                store = open(limit);
            }
            let paths: Vec<PathBuf> = files(folder.path()).into_keys().collect();
            if paths.len() > 1 {
                let one = draw.below(paths.len());
                damage(&mut draw, &paths[one], &paths[(one + 1) % paths.len()]);
            }
            let text = draw.text();
            let (_, cache) = read(&store, &kind, &text, |_| {
                assert!(files(folder.path()).into_values().sum::<u64>() <= limit);
            });
            assert_eq!(hash(cache), hash(kind.alone(&text)), "{text:?}");
        }
        note(&store);
        assert!(sums.iter().all(|it| *it > 5), "loaded, damaged, evicted: {sums:?}");
    }
}

#[test]
fn files_of_others_are_left_alone_and_a_folder_that_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kind = Kind::dense();
    let own = folder.path().join("notes.txt");
    fs::write(&own, "mine").unwrap();
    // What a killed process leaves.
    let unfinished = folder.path().join(".unfinished-x1");
    fs::write(&unfinished, [0; 100]).unwrap();
    let store = PrefixStore::new(0).with_folder(folder.path(), 1 << 20).unwrap();
    read(&store, &kind, &[(0, 0), (1, 0)], |_| ());
    assert!(own.exists() && !unfinished.exists());
    assert_eq!(files(folder.path()).len(), 2);
    // A lower limit holds from the moment the folder is opened.
    let one = files(folder.path()).into_values().max().unwrap();
    let small = PrefixStore::new(0).with_folder(folder.path(), one).unwrap();
    assert_eq!(files(folder.path()).len(), 1);
    // The beginning of the text is what stays.
    assert_eq!(read(&small, &kind, &[(0, 0)], |_| ()).0, 1);
    // A block that is larger than the limit is not written, and nothing leaves for it.
    let tiny = PrefixStore::new(1 << 20).with_folder(folder.path().join("tiny"), 10).unwrap();
    assert_eq!(read(&tiny, &kind, &[(0, 0)], |_| ()).0, 0);
    assert_eq!((tiny.counters().unwritten, tiny.counters().blocks), (1, 1));
    small.clear();
    assert!(files(folder.path()).is_empty() && own.exists());

    let error = PrefixStore::new(0).with_folder(&own, 10).unwrap_err().to_string();
    assert!(error.contains("notes.txt cannot be a folder of prefixes"), "{error}");
}

/// The folder and seed of [`worker`], where it is one.
const WORK: [&str; 2] = ["MLXGK_PREFIX_FOLDER", "MLXGK_PREFIX_SEED"];
/// Room for a few blocks.
const SHARED_LIMIT: u64 = 600_000;

/// What one of two processes does; does nothing by itself.
#[test]
fn worker() {
    let [Some(folder), Some(seed)] = WORK.map(env::var_os) else { return };
    let kind = Kind::dense();
    let store = PrefixStore::new(0).with_folder(folder, SHARED_LIMIT).unwrap();
    let mut draw = Draw(seed.to_str().unwrap().parse().unwrap());
    for _ in 0..60 {
        let text = draw.text();
        let (_, cache) = read(&store, &kind, &text, |_| ());
        assert_eq!(hash(cache), hash(kind.alone(&text)));
    }
    let counters = store.counters();
    assert_eq!((counters.damaged, counters.unwritten), (0, 0), "{counters:?}");
    assert!(counters.loaded > 5, "{counters:?}");
}

#[test]
fn processes_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let start = |seed: &str| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "worker"]).env(WORK[0], folder.path()).env(WORK[1], seed);
        command.spawn().unwrap()
    };
    let mut workers = ["1", "2"].map(start);
    let path = folder.path().join(".lock");
    let lock = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    let mut most = 0;
    while workers.iter_mut().any(|it| it.try_wait().unwrap().is_none()) {
        // Who holds the lock sees what the limit is of.
        lock.lock().unwrap();
        let bytes = files(folder.path()).values().sum();
        lock.unlock().unwrap();
        most = most.max(bytes);
        assert!(bytes <= SHARED_LIMIT, "{bytes}");
        std::thread::yield_now();
    }
    assert!(workers.iter_mut().all(|it| it.wait().unwrap().success()));
    assert!(most > SHARED_LIMIT / 2, "{most}");
}
