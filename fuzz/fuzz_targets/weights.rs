//! A weight file of any bytes beside a good config: it is refused in a sentence.
//!
//! The first byte chooses whether the bytes are the weights or the index of their shards.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use mlxgk_mlx_models::{ComputeDtype, Decoder};

/// A model folder without weights.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("mlxgk-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/models/llama/config.json");
    fs::copy(config, folder.join("config.json")).unwrap();
    folder
});

fuzz_target!(|data: &[u8]| {
    let [which, bytes @ ..] = data else { return };
    let name = ["model.safetensors", "model.safetensors.index.json"][usize::from(which % 2)];
    let path = FOLDER.join(name);
    fs::write(&path, bytes).unwrap();
    let loaded = Decoder::load(&*FOLDER, ComputeDtype::Float32);
    fs::remove_file(&path).unwrap();
    if let Err(e) = loaded {
        assert_eq!(e.to_string().lines().count(), 1, "{e}");
    }
});
