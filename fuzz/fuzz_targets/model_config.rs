//! A `config.json` of any content beside good weights: it is refused in a sentence, or the model reads
//! four tokens without a panic.
//!
//! The first byte chooses the fixture whose weights are taken, the rest is the config.

#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use mlxgk_mlx_models::{ComputeDtype, Decoder};

/// The weights of the tiny models that have them in one file, by the names of their folders.
static WEIGHTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models");
    let mut folders: Vec<_> = fs::read_dir(models).unwrap().map(|it| it.unwrap().path()).collect();
    folders.sort();
    folders.iter().filter_map(|it| fs::read(it.join("model.safetensors")).ok()).collect()
});

fuzz_target!(|data: &[u8]| {
    let [which, config @ ..] = data else { return };
    let weights = &WEIGHTS[usize::from(*which) % WEIGHTS.len()];
    let read = Decoder::from_bytes(config, weights, ComputeDtype::Float32).and_then(|decoder| {
        let scores = decoder.logits_of(&[&[1, 2, 3, 1]])?;
        Ok(scores.eval()?)
    });
    if let Err(e) = read {
        assert_eq!(e.to_string().lines().count(), 1, "{e}");
    }
});
