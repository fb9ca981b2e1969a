//! Which model, and where and how it runs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mlx_genkit::training::SoftPrompt;

use crate::failure::Result;

/// Which model, and where and how it runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Model: a folder, or a hub id such as Qwen/Qwen3-0.6B or Qwen/Qwen3-0.6B@main, which is
    /// downloaded once; the model inside the binary by default
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Use models that are on this machine, and never the network
    #[arg(long)]
    pub(crate) offline: bool,
    /// Take tokenizer and chat template from this folder instead of the model's
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// LoRA or DoRA adapter to run with, a folder as PEFT, mlx-lm or `mlxgk train` write it;
    /// repeatable, what each changes is added up
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Vec<PathBuf>,
    /// Where to run; the GPU where there is one by default
    #[arg(long, value_enum)]
    pub(crate) device: Option<DeviceArg>,
    /// Precision of weights and activations; auto is the checkpoint's on a GPU, float32 on the CPU
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) dtype: DtypeArg,
}

/// What stands before each prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct SoftPromptArgs {
    /// Soft prompt to put before each prompt, a folder or file as PEFT or `mlxgk train` write it
    #[arg(long, value_name = "FILE")]
    soft_prompt: Option<PathBuf>,
}

impl SoftPromptArgs {
    /// Reads it, where there is one.
    pub(crate) fn load(&self) -> Result<Option<SoftPrompt>> {
        let load = |path| SoftPrompt::load(path).map_err(mlx_genkit::Error::from);
        Ok(self.soft_prompt.as_ref().map(load).transpose()?)
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
