//! `mlxgk models`: what was downloaded, and removing it; which architectures can be loaded.

use clap::{Args, Subcommand};
use mlx_genkit::mlx_models::supported;
use mlxgk_model_hub::{CachedModel, Hub, ModelId};
use serde::Serialize;

use crate::{
    document,
    failure::{Failure, Result},
    flags::{Format, OutputArgs},
    info::bytes,
    load, terminal,
};

/// The flags.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: Option<ModelsCommand>,
    /// List every model_type that can be loaded, and what it was checked against
    #[arg(long)]
    supported: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Remove a model with all its revisions
    #[command(after_help = "\
Example:
  mlxgk models remove Qwen/Qwen3-0.6B")]
    Remove {
        /// Hub id, such as Qwen/Qwen3-0.6B
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// The subcommand.
pub(crate) fn run(args: &ModelsArgs) -> Result<()> {
    if args.supported {
        return list_supported(args.output.format);
    }
    let hub = load::hub(true)?;
    match &args.command {
        None => list(&hub, args.output.format),
        Some(ModelsCommand::Remove { id }) => {
            let id: ModelId = id.parse().map_err(Failure::usage)?;
            let freed = hub.remove(&id)?;
            Ok(terminal::line(format_args!("removed {}, {}", id.repo(), bytes(freed as usize)))?)
        }
    }
}

/// The JSON document of `--supported`.
#[derive(Debug, Serialize)]
struct SupportedDocument {
    supported: Vec<SupportedType>,
}

#[derive(Debug, Serialize)]
struct SupportedType {
    model_type: &'static str,
    checked_against: &'static str,
}

fn list_supported(format: Format) -> Result<()> {
    if format == Format::Json {
        let of = |it: mlx_genkit::mlx_models::Supported| SupportedType {
            model_type: it.model_type,
            checked_against: it.checked_against,
        };
        return document::print(&SupportedDocument { supported: supported().map(of).collect() });
    }
    let width = supported().map(|it| it.model_type.len()).max().unwrap_or(0);
    for it in supported() {
        terminal::line(format_args!("{:width$}  {}", it.model_type, it.checked_against))?;
    }
    Ok(())
}

/// The JSON document.
#[derive(Debug, Serialize)]
struct Document<'a> {
    cache: String,
    models: Vec<Model<'a>>,
}

#[derive(Debug, Serialize)]
struct Model<'a> {
    id: &'a str,
    commit: &'a str,
    revisions: &'a [String],
    folder: String,
    bytes: u64,
    complete: bool,
}

fn list(hub: &Hub, format: Format) -> Result<()> {
    let models = hub.models()?;
    match format {
        Format::Json => document::print(&Document {
            cache: hub.cache_folder().display().to_string(),
            models: models.iter().map(Model::of).collect(),
        }),
        Format::Text => print(hub, &models),
    }
}

impl<'a> Model<'a> {
    fn of(model: &'a CachedModel) -> Self {
        Self {
            id: &model.repo,
            commit: &model.commit,
            revisions: &model.revisions,
            folder: model.folder.display().to_string(),
            bytes: model.bytes,
            complete: model.is_complete,
        }
    }
}

fn print(hub: &Hub, models: &[CachedModel]) -> Result<()> {
    if models.is_empty() {
        terminal::note(&format!("no models in {}", hub.cache_folder().display()));
    }
    let width = models.iter().map(|it| it.repo.len()).max().unwrap_or(0);
    for model in models {
        let state = if model.is_complete { "" } else { "  incomplete" };
        terminal::line(format_args!(
            "{:width$}  {:>10}  {}  {}{state}",
            model.repo,
            bytes(model.bytes as usize),
            &model.commit[..12.min(model.commit.len())],
            model.revisions.join(", "),
        ))?;
    }
    Ok(())
}
