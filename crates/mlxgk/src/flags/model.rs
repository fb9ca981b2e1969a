//! Which model, and where and how it runs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mlx_genkit::training::SoftPrompt;

use crate::{failure::Result, files::named};

/// Which model, and where and how it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Model: a folder, or a hub id such as Qwen/Qwen3-0.6B or Qwen/Qwen3-0.6B@main, which is
    /// downloaded once; the model inside the binary by default
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Never use the network: only models on this machine
    #[arg(long)]
    pub(crate) offline: bool,
    /// Folder with the tokenizer and chat template to use instead of the model's
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// LoRA or DoRA adapter: a folder of PEFT, mlx-lm or `mlxgk train`; repeatable, what each changes is
    /// added up
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Vec<PathBuf>,
    /// Device to run on; a GPU by default where there is one
    #[arg(long, value_enum)]
    pub(crate) device: Option<DeviceArg>,
    /// Dtype of weights and activations; auto is the checkpoint's on a GPU, float32 on the CPU
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) dtype: DtypeArg,
}

/// What precedes each prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct SoftPromptArgs {
    /// Soft prompt before each prompt: a folder or file of PEFT or `mlxgk train`
    #[arg(long, value_name = "FILE")]
    soft_prompt: Option<PathBuf>,
}

impl SoftPromptArgs {
    /// Reads it, where there is one.
    pub(crate) fn load(&self) -> Result<Option<SoftPrompt>> {
        self.soft_prompt.as_ref().map(|it| named(SoftPrompt::load(it))).transpose()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    Cpu,
    Gpu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}
