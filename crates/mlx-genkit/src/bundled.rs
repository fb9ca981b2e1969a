//! The small model inside the library; `bundled/README.md` says what it is and how it was made.

use std::{fs, path::Path};

use mlxgk_mlx_models::{ComputeDtype, Decoder};
use mlxgk_tokenizer_bridge::Files;

use crate::{Error, ErrorKind, Model, Result};

const CONFIG: &[u8] = include_bytes!("../bundled/config.json");
const WEIGHTS: &[u8] = include_bytes!("../bundled/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../bundled/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../bundled/tokenizer_config.json");
const CHAT_TEMPLATE: &[u8] = include_bytes!("../bundled/chat_template.jinja");
const GENERATION_CONFIG: &[u8] = include_bytes!("../bundled/generation_config.json");

/// Writes it as a folder in Hugging Face's layout.
pub(crate) fn write(folder: &Path) -> Result<()> {
    let failed = |path: &Path, e: std::io::Error| {
        Error::new(ErrorKind::Run, format!("{}: cannot be written: {e}", path.display()))
    };
    fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    for (name, bytes) in [
        ("config.json", CONFIG),
        ("model.safetensors", WEIGHTS),
        ("tokenizer.json", TOKENIZER),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
        ("chat_template.jinja", CHAT_TEMPLATE),
        ("generation_config.json", GENERATION_CONFIG),
    ] {
        let path = folder.join(name);
        mlxgk_steering::write_file(&path, bytes).map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

pub(crate) fn load(dtype: ComputeDtype) -> Result<Model> {
    let decoder = Decoder::from_bytes(CONFIG, WEIGHTS, dtype)?;
    let files = Files {
        tokenizer: Some(TOKENIZER.into()),
        tokenizer_config: Some(TOKENIZER_CONFIG.into()),
        chat_template: Some(CHAT_TEMPLATE.into()),
        config: Some(CONFIG.into()),
        generation_config: Some(GENERATION_CONFIG.into()),
        ..Files::default()
    };
    Model::assemble("the bundled model".to_owned(), decoder, &files)
}
