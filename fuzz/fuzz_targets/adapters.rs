//! An adapter or soft prompt of any content: it is refused in a sentence, or the model reads four
//! tokens with it without a panic.
//!
//! The first byte chooses PEFT's adapter, mlx-lm's or a soft prompt; the next two say where the config
//! ends and the weights begin.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use mlxgk_mlx_models::{ComputeDtype, Decoder};
use mlxgk_training::{Result, SoftPrompt, load_adapter};

/// The tiny model that adapters are read for.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/models/llama");

static CONFIG: LazyLock<Vec<u8>> =
    LazyLock::new(|| fs::read(PathBuf::from(MODEL).join("config.json")).unwrap());
static WEIGHTS: LazyLock<Vec<u8>> =
    LazyLock::new(|| fs::read(PathBuf::from(MODEL).join("model.safetensors")).unwrap());

/// The folder of an adapter while it is read; its name is the process's own.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("mlxgk-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
});

fuzz_target!(|data: &[u8]| {
    let [kind, high, low, rest @ ..] = data else { return };
    let cut = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (config, weights) = rest.split_at(cut);
    let name = ["adapter_model.safetensors", "adapters.safetensors"][usize::from(kind % 2)];
    fs::write(FOLDER.join("adapter_config.json"), config).unwrap();
    let path = FOLDER.join(name);
    fs::write(&path, weights).unwrap();
    let read = read(kind % 3 == 2);
    fs::remove_file(&path).unwrap();
    if let Err(e) = read {
        assert_eq!(e.to_string().lines().count(), 1, "{e}");
    }
});

fn read(is_prompt: bool) -> Result<()> {
    if is_prompt {
        return SoftPrompt::load(&*FOLDER)?.rows().map(drop);
    }
    let mut decoder = Decoder::from_bytes(&CONFIG, &WEIGHTS, ComputeDtype::Float32)?;
    load_adapter(&mut decoder, &*FOLDER)?;
    decoder.logits_of(&[&[1, 2, 3, 1]])?.eval().unwrap();
    Ok(())
}
