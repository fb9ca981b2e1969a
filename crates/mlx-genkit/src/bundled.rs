//! The small model inside the library; `bundled/README.md` says what it is and how it was made.

use mlxgk_mlx_models::{ComputeDtype, Decoder};
use mlxgk_tokenizer_bridge::Files;

use crate::{Model, Result};

const CONFIG: &[u8] = include_bytes!("../bundled/config.json");
const WEIGHTS: &[u8] = include_bytes!("../bundled/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../bundled/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../bundled/tokenizer_config.json");
const CHAT_TEMPLATE: &[u8] = include_bytes!("../bundled/chat_template.jinja");
const GENERATION_CONFIG: &[u8] = include_bytes!("../bundled/generation_config.json");

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
