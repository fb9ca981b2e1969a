//! A cache file of any bytes: it is refused in a sentence, or it is a cache that a model continues
//! without a panic.
//!
//! The first byte chooses how many tokens a file of mlx-lm is said to hold, the rest is the file.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use mlxgk_kv_cache::{CacheFile, KvCache};
use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};

thread_local! {
    static DECODER: Decoder = {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/models/qwen2");
        Decoder::load(folder, ComputeDtype::Float32).unwrap()
    };
}

/// Where a file lies while it is read; its name is the process's own.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("mlxgk-fuzz-{}.safetensors", std::process::id());
    std::env::temp_dir().join(name)
});

fuzz_target!(|data: &[u8]| {
    let [tokens, bytes @ ..] = data else { return };
    fs::write(&*FILE, bytes).unwrap();
    DECODER.with(|decoder| {
        let wrong = |e: String| assert_eq!(e.lines().count(), 1, "{e}");
        let mut cache = match read(decoder, usize::from(*tokens)) {
            Ok(cache) => cache,
            Err(e) => return wrong(e.to_string()),
        };
        let scores = decoder.forward(&[&[1]], &mut cache, &mut NoHook);
        match scores {
            Ok(scores) => scores.eval().unwrap(),
            Err(e) => wrong(e.to_string()),
        }
    });
});

fn read(decoder: &Decoder, tokens: usize) -> mlxgk_kv_cache::Result<KvCache> {
    let file = CacheFile::open(&*FILE)?;
    let layers = decoder.layers();
    match file.tokens() {
        Some(_) => file.into_cache(layers),
        None => file.into_cache_of(layers, &vec![1; tokens]),
    }
}
