//! What is to be trained, on what, and for how long.

use std::path::PathBuf;

use serde::Deserialize;

/// A run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The folder with `config.json`, of model type `qwen3` with tied embeddings; its other files, without
    /// weights and tokenizer, are taken over.
    pub base: PathBuf,
    /// The folder to write.
    pub out: PathBuf,
    /// What the tokenizer is made from.
    pub tokenizer: PathBuf,
    /// Documents of the ordinary batches.
    pub short: Documents,
    /// Documents of batches with longer rows.
    pub long: Documents,
    /// Every so many steps a batch has longer rows.
    pub long_every: u64,
    /// Documents whose loss is measured: 16 rows as long as the ordinary ones.
    pub held_out: PathBuf,
    /// Tokens to train on.
    pub tokens: u64,
    /// Tokens of a batch.
    pub batch_tokens: usize,
    /// AdamW's learning rate, for embeddings and norms.
    pub learning_rate: f64,
    /// Muon's learning rate, for the matrices of the blocks.
    pub muon_learning_rate: f64,
    /// Steps in which both grow from 0.
    pub warmup: u64,
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// What the weights are drawn from.
    pub seed: u64,
    /// Continues the run in `out`.
    #[serde(default)]
    pub resume: bool,
}

/// Where documents lie, and how long the rows made of them are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Documents {
    /// A file of lines `{"text": …}`.
    pub file: PathBuf,
    /// Tokens of a row.
    pub row_tokens: usize,
}
