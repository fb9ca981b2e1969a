//! Caches as files: every kind there and back, mlx-lm's own files, and what is refused.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use mlx_rs::Array;
use mlxgk_kv_cache::{
    CacheFile, CacheOptions, CacheOrigin, Column, ErrorKind, KvCache, LayerSpec, Quantization,
};

const LAYERS: [LayerSpec; 5] = [
    LayerSpec::Full,
    LayerSpec::Sliding { window: 8 },
    LayerSpec::State,
    LayerSpec::Shared { owner: 1 },
    LayerSpec::Full,
];

/// Columns whose numbers follow from where they stand.
fn numbers(start: usize, count: usize, layer: usize) -> Array {
    let number = |it: usize| ((it * 7919 + start * 31 + layer * 97) % 1009) as f32 / 500.0 - 1.0;
    let numbers: Vec<f32> = (0..2 * count * 32).map(number).collect();
    Array::from_slice(&numbers, &[1, 2, count as i32, 32])
}

fn feed(cache: &mut KvCache, tokens: &[u32]) -> Vec<Array> {
    let (start, count) = (cache.len(), tokens.len());
    let specs: Vec<LayerSpec> = cache.layers().collect();
    let mut pass = cache.begin_tokens(&[tokens], &[Some("joy × 1.5".into())]).unwrap();
    let mut seen = Vec::new();
    for (layer, spec) in specs.iter().enumerate() {
        match spec {
            LayerSpec::Shared { .. } => {}
            LayerSpec::State => {
                let state =
                    [0, 1].map(|it| Array::from_slice(&[(start + count + it) as f32], &[1]));
                pass.set_state(layer, state.to_vec()).unwrap();
            }
            _ => {
                let new = numbers(start, count, layer);
                let it = pass.append(layer, &new, &new).unwrap();
                seen.extend([it.keys.dense().unwrap(), it.values.dense().unwrap()]);
            }
        }
    }
    pass.commit().unwrap();
    seen
}

fn ways() -> Vec<(&'static str, CacheOptions)> {
    let packed = Quantization::new(32, 4).unwrap();
    vec![
        ("dense", CacheOptions::new()),
        ("packed", CacheOptions::new().quantized(packed)),
        ("packed later", CacheOptions::new().quantized(packed.starting_at(50))),
        ("bounded", CacheOptions::new().bounded(3, 20)),
        ("both", CacheOptions::new().bounded(3, 20).quantized(packed)),
    ]
}

fn origin() -> CacheOrigin {
    CacheOrigin {
        model: "./tiny".into(),
        fingerprint: "abc".into(),
        notes: [("messages".to_owned(), "[]".to_owned())].into(),
    }
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|it| it * 7 % 131).collect()
}

fn bytes_of(cache: &KvCache, folder: &Path) -> Vec<u8> {
    let path = folder.join("cache.safetensors");
    cache.save(&path, &origin()).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn every_kind_goes_on_from_a_file_as_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in ways() {
        for len in [3, 19, 30, 400] {
            let mut cache = KvCache::with_options(&LAYERS, &[0], &options).unwrap();
            let text = tokens(len);
            for part in text.chunks(150) {
                feed(&mut cache, part);
            }
            cache.set_prompt_end(len);
            let path = folder.path().join("cache.safetensors");
            cache.save(&path, &origin()).unwrap();
            let saved = fs::read(&path).unwrap();
            let file = CacheFile::open(&path).unwrap();
            assert_eq!((file.tokens().unwrap(), file.len()), (text.clone(), len));
            assert_eq!((file.origin(), file.steering()), (Some(origin()), Some("joy × 1.5")));
            let mut again = file.into_cache(&LAYERS).unwrap();
            assert_eq!((again.tokens(0), again.prompt_end(0)), (text, Some(len)));
            assert_eq!((again.options(), again.live_bytes()), (&options, cache.live_bytes()));
            // Equal caches give equal files, whatever they hold beyond what is seen.
            assert!(bytes_of(&again, folder.path()) == saved, "{name} {len}");
            for count in [1, 4, 1, 70, 1] {
                let text = tokens(count);
                for (ours, theirs) in feed(&mut cache, &text).iter().zip(feed(&mut again, &text)) {
                    // A bounded layer may show more, which its mask hides.
                    let newest = ours.dim(2).min(theirs.dim(2)).min(8);
                    let last = |it: &Array| {
                        let parts = it.split_at_indices(&[it.dim(2) - newest], 2).unwrap();
                        parts[1].contiguous().unwrap().to_vec_exact::<f32>().unwrap()
                    };
                    assert_eq!(last(ours), last(&theirs), "{name} {len}");
                }
            }
            assert!(bytes_of(&cache, folder.path()) == bytes_of(&again, folder.path()), "{name}");
        }
    }
}

#[test]
fn files_of_mlx_lm_are_read_by_the_tokens_that_made_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/caches/files");
    let full = [LayerSpec::Full];
    for (name, specs, len, options) in [
        ("v1-dense", &full, 11, CacheOptions::new()),
        ("v2-dense", &full, 11, CacheOptions::new()),
        ("v1-packed", &full, 11, CacheOptions::new().quantized(Quantization::new(32, 4).unwrap())),
        ("v2-packed", &full, 11, CacheOptions::new().quantized(Quantization::new(32, 4).unwrap())),
        ("v1-rotating", &full, 11, CacheOptions::new().bounded(2, 6)),
        ("v2-rotating", &full, 11, CacheOptions::new().bounded(2, 6)),
        ("v2-rotating-early", &full, 4, CacheOptions::new().bounded(2, 6)),
        ("v2-window", &[LayerSpec::Sliding { window: 6 }], 11, CacheOptions::new()),
    ] {
        let file = CacheFile::open(folder.join(format!("{name}.safetensors"))).unwrap();
        assert_eq!((file.tokens(), file.origin(), file.len()), (None, None, len), "{name}");
        assert_eq!(file.notes()["model"], "./tiny", "{name}");
        let error = file.clone().into_cache(specs).unwrap_err().to_string();
        assert!(error.ends_with("does not name its tokens, since mlx-lm writes none"));
        let cache = file.clone().into_cache_of(specs, &tokens(len)).unwrap();
        assert_eq!(cache.options(), &options, "{name}");
        // The recording script fed the number of each token's place.
        let state = cache.state().unwrap();
        let keys = match state.arrays.get("layers.0.keys") {
            Some(keys) => keys.clone(),
            None => {
                let part = |it: &str| &state.arrays[&format!("layers.0.keys.{it}")];
                let (scales, biases) = (part("scales"), part("biases"));
                mlx_rs::ops::dequantize(part("packed"), scales, biases, 32, 4).unwrap()
            }
        };
        let first: Vec<f32> = keys.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
        let places: Vec<f32> =
            first.chunks(32).take(keys.dim(2) as usize).map(|it| it[0]).collect();
        let expected: Vec<f32> = match (name.contains("rotating"), name.contains("window")) {
            // Two slots, empty as long as nothing was dropped.
            (true, _) if len == 4 => [0.0, 0.0, 0.0, 1.0, 2.0, 3.0].into(),
            (true, _) => [0.0, 1.0, 7.0, 8.0, 9.0, 10.0].into(),
            (_, true) => (5..11).map(|it| it as f32).collect(),
            _ => (0..11).map(|it| it as f32).collect(),
        };
        let near = places.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(places.len() == expected.len() && near, "{name}: {places:?}");
        let error = file.into_cache_of(specs, &tokens(len - 1)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("holds {len} tokens in layer 0, not {}", len - 1)),
            "{error}"
        );
    }
}

#[test]
fn what_is_no_whole_cache_of_this_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let mut cache = KvCache::new(&LAYERS, 1);
    feed(&mut cache, &tokens(30));
    cache.save(&path, &origin()).unwrap();
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = CacheFile::open(&path).and_then(|it| it.into_cache(&LAYERS)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::File);
        let error = error.to_string();
        assert!(error.contains("cache.safetensors "), "{error}");
        error
    };
    for len in (0..whole.len()).step_by(997).chain([4, 7, 8, 9, whole.len() - 1]) {
        assert!(refused(&whole[..len]).contains("truncated"), "{len}");
    }
    assert!(refused(b"{\"a\": 1}").contains("not a safetensors file"));
    let text = String::from_utf8_lossy(&whole).into_owned();
    assert!(text.contains("joy"));
    let swap = |from: &str, to: &str| {
        let mut bytes = whole.clone();
        let at = bytes.windows(from.len()).position(|it| it == from.as_bytes()).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    assert!(refused(&swap("[0,7,14", "[0,7,15")).contains("its tokens are not those of its hash"));
    assert!(
        refused(&swap("RotatingKVCache", "RotatingKvCache")).contains("a kind that is not read")
    );
    let named = |version: &str| format!("\\\"version\\\":{version}");
    assert!(refused(&swap(&named("1"), &named("2"))).contains("is of version 2"));
    assert!(refused(&swap("\"2.0\"", "\"3.0\"")).contains("not one with a prompt cache"));

    fs::write(&path, &whole).unwrap();
    let file = CacheFile::open(&path).unwrap();
    let other = [LayerSpec::Full; 5];
    let error = file.clone().into_cache(&other).unwrap_err().to_string();
    assert!(error.ends_with("is a cache of a model with other layers"), "{error}");
    let stranger = CacheOrigin { model: "./other".into(), ..CacheOrigin::default() };
    let error = file.check_origin(&stranger).unwrap_err().to_string();
    assert!(
        error.contains("a cache of ./tiny with other weights than those of ./other"),
        "{error}"
    );
    file.check_origin(&origin()).unwrap();
    let again = file.into_cache(&LAYERS).unwrap();
    let error = again.check_steering(&[None]).unwrap_err().to_string();
    assert!(error.contains("under the steering `joy × 1.5`"), "{error}");

    for (cache, expected) in [
        (
            KvCache::new(&LAYERS, 1),
            "a file holds a row without padding, to which something was fed",
        ),
        (KvCache::new(&LAYERS, 2), "a file holds one row, and the cache has 2"),
        (KvCache::left_padded(&LAYERS, &[1]), "a file holds a row without padding"),
    ] {
        assert!(cache.save(&path, &origin()).unwrap_err().to_string().starts_with(expected));
    }
    assert!(fs::read(&path).unwrap() == whole, "a refused save leaves the file alone");
    let missing = CacheFile::open(folder.path().join("none.safetensors")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read "), "{missing}");
    let is_folder = CacheFile::open(folder.path()).unwrap_err().to_string();
    assert!(is_folder.ends_with("is not a file"), "{is_folder}");
    let nowhere = folder.path().join("none/cache.safetensors");
    let error = again.save(&nowhere, &origin()).unwrap_err().to_string();
    assert!(error.starts_with("cannot write "), "{error}");
}

#[test]
fn embeddings_keep_their_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let columns = [Column::Token(5), Column::embedded(&[0.5, 1.0]), Column::Token(9)];
    let mut cache = KvCache::new(&[LayerSpec::Full], 1);
    let mut pass = cache.begin(&[&columns], &[]).unwrap();
    pass.append(0, &numbers(0, 3, 0), &numbers(0, 3, 0)).unwrap();
    pass.commit().unwrap();
    cache.save(&path, &origin()).unwrap();
    let file = CacheFile::open(&path).unwrap();
    assert_eq!((file.len(), file.tokens()), (3, Some(vec![5])));
    assert_eq!(file.into_cache(&[LayerSpec::Full]).unwrap().columns(0), columns);
}

/// The child of the next test: writes two caches in turn until it is killed.
#[test]
fn saves_until_it_is_killed() {
    let Some(path) = std::env::var_os("MLXGK_TEST_SAVES").map(PathBuf::from) else { return };
    let mut caches = [KvCache::new(&LAYERS, 1), KvCache::new(&LAYERS, 1)];
    feed(&mut caches[0], &tokens(900));
    feed(&mut caches[1], &tokens(901));
    loop {
        caches.iter().for_each(|it| it.save(&path, &origin()).unwrap());
    }
}

#[test]
fn a_save_that_is_interrupted_leaves_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    for round in 0..50 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "saves_until_it_is_killed", "--test-threads=1"])
            .env("MLXGK_TEST_SAVES", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !path.exists() {
            assert_eq!(child.try_wait().unwrap(), None, "it ended without a file");
            std::thread::sleep(Duration::from_millis(1));
        }
        // Somewhere within the files after the first of this child's.
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        for _ in 0..2000 {
            if fs::metadata(&path).unwrap().modified().unwrap() != before {
                break;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        std::thread::sleep(Duration::from_micros(313 * (round % 16)));
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = CacheFile::open(&path).unwrap().into_cache(&LAYERS).unwrap();
        assert!(matches!(cache.len(), 900 | 901), "{}", cache.len());
    }
}
