//! `mlxgk adapter`: what is done with adapters beside using them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mlx_genkit::training::merge_folder;

use crate::{
    failure::{Failure, Result},
    flags::ModelArgs,
    load, terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Write a model with one or more adapters in its weights
    #[command(after_help = "\
Example:
  mlxgk adapter merge -m ./qwen3 --adapter ./pirate --out ./qwen3-pirate")]
    Merge(MergeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The folder to write, which must not be there yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

/// The subcommand.
pub(crate) fn run(command: &AdapterCommand) -> Result<()> {
    let AdapterCommand::Merge(args) = command;
    let adapters = &args.model.adapter;
    if adapters.is_empty() {
        return Err(Failure::usage("missing required argument: --adapter <DIR>"));
    }
    if args.model.tokenizer.is_some() {
        let what = "--tokenizer is not available: the model's own tokenizer is copied";
        return Err(Failure::usage(what));
    }
    let base = load::folder(&args.model)?;
    let count = merge_folder(base.path(), adapters, &args.out).map_err(mlx_genkit::Error::from)?;
    terminal::line(format_args!("{count} matrices merged: {}", args.out.display()))?;
    Ok(())
}
