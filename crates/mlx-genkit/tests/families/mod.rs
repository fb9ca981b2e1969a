//! The tiny models of `fixtures/models`, one of each family.

use std::path::Path;

use mlx_genkit::{ComputeDtype, Model};

/// Longrope comes last: it reads a row differently beside a longer one.
pub(crate) const FAMILIES: [&str; 11] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "qwen3_5",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-longrope-5x",
];

/// One of them, in fp32.
pub(crate) fn tiny(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Model::load(folder, ComputeDtype::Float32).unwrap()
}
