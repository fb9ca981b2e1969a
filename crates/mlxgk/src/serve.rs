//! `mlxgk serve`.

use std::{
    env::{self, VarError},
    path::{Path, PathBuf},
};

use clap::Args;
use mlx_genkit::steering::SteeringVectors;
use mlxgk_server::{ErrorKind, Options, Server};

use crate::{
    failure::{Failure, Result},
    files,
    flags::ModelArgs,
    load, terminal,
};

/// Where the API key may be found: unlike a flag, other users of the machine do not see it.
const API_KEY: &str = "MLXGK_API_KEY";

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What requests call the model; its id, or its folder's name, by default
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    model_name: Option<String>,
    /// Name or address to listen on; 0.0.0.0 is every one that this machine has
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 is one that the system chooses
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Key that requests have to bring, as `Authorization: Bearer KEY`; by default the variable
    /// MLXGK_API_KEY, which, unlike a flag, other users of the machine do not see
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Origin whose pages may read answers, such as `https://example.org`, or `*`
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Option<String>,
    /// Sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_rows: usize,
    /// Requests that wait for a place; the next is refused
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: usize,
    /// New tokens of a request that sets no length, where the model's config sets none either
    #[arg(
        short = 'n',
        long,
        visible_alias = "max-new-tokens",
        value_name = "N",
        default_value_t = 256
    )]
    max_tokens: usize,
    /// Megabytes for beginnings that prompts have in common, which then are read once
    #[arg(long, value_name = "MB", default_value_t = 0)]
    prefix_cache_mb: usize,
    /// Steering file that requests can name; repeatable
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file, help_heading = "Steering")]
    steer_name: Vec<(String, PathBuf)>,
}

/// The subcommand.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let load_vectors = |(name, file): &(String, PathBuf)| {
        let vectors = files::named(SteeringVectors::load(file))?;
        Ok((name.clone(), vectors))
    };
    let options = Options {
        host: args.host.clone(),
        port: args.port,
        model: args.model_name.clone().unwrap_or_else(|| model_name(&args.model)),
        api_key: match &args.api_key {
            Some(key) => Some(key.clone()),
            None => key_of_environment()?,
        },
        cors_origin: args.cors_origin.clone(),
        max_rows: args.max_rows,
        queue: args.queue,
        max_tokens: args.max_tokens,
        prefix_cache_mb: args.prefix_cache_mb,
        vectors: args.steer_name.iter().map(load_vectors).collect::<Result<_>>()?,
        ..Options::default()
    };
    let is_open = options.api_key.is_none();
    // Before the model is loaded, which can take long.
    let server = Server::bind(options)?.stop_on_signals();
    let (model, _) = load::load(&args.model)?;
    let address = server.address();
    if is_open && !address.ip().is_loopback() {
        terminal::warning(
            "everyone who can reach this machine can use the server: add --api-key, or leave --host out",
        );
    }
    terminal::line(format_args!("listening on http://{address}"))?;
    Ok(server.run(&model)?)
}

/// The key of the environment; an empty variable is one that is not set.
fn key_of_environment() -> Result<Option<String>> {
    match env::var(API_KEY) {
        Ok(key) => Ok(Some(key).filter(|it| !it.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => {
            Err(Failure::usage(format_args!("{API_KEY} is not valid UTF-8")))
        }
    }
}

/// What a model is called that the flags name: never by a path, which is nobody else's concern.
fn model_name(args: &ModelArgs) -> String {
    let Some(model) = &args.model else { return "bundled".to_owned() };
    let path = Path::new(model);
    let folder = path.canonicalize().ok().filter(|it| it.is_dir());
    let name = folder.as_deref().and_then(Path::file_name);
    name.map_or_else(|| model.clone(), |it| it.to_string_lossy().into_owned())
}

/// `NAME=FILE`.
fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), file.into()))
        }
        _ => Err("must be a name, `=` and a file".to_owned()),
    }
}

impl From<mlxgk_server::Error> for Failure {
    fn from(error: mlxgk_server::Error) -> Self {
        match error.kind() {
            ErrorKind::Options => Self::usage(error),
            _ => Self::other(error),
        }
    }
}
