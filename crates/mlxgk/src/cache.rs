//! `mlxgk cache`: builds and shows prompt caches.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use mlx_genkit::{
    Model, Prompt, Request,
    kv_cache::{CacheFile, CacheOptions, KvCache},
};
use serde_json::json;

use crate::{
    conversation::Rendering,
    document,
    failure::{Failure, Result},
    files::named,
    flags::{ChatArgs, ConfigArgs, Format, ModelArgs, OutputArgs, PromptArgs, SteerArgs},
    load,
    progress::Spinner,
    prompts,
    settings::Settings,
    terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Read a prompt once, and keep what the model remembers of it in a file
    #[command(after_help = "\
Examples:
  mlxgk cache build -m ./qwen3 --no-auto-chat --prompt - --out manual.safetensors < manual.txt
  mlxgk cache build \"How is the weather?\" --system \"You are a pirate.\" --out pirate.safetensors
  mlxgk cache build --kv-bits 4 --prompt-ids 5,17,300 --out packed.safetensors

A prompt that begins like the one in the file is then read from where the two part:
`mlxgk generate --prompt-cache FILE`, `mlxgk chat --prompt-cache FILE`. mlx-lm loads it, too.")]
    Build(Box<BuildArgs>),
    /// Show what a prompt-cache file holds, one of mlx-lm's too
    #[command(after_help = "\
Example:
  mlxgk cache show manual.safetensors")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    /// The file to write; its name ends with .safetensors
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    steering: SteerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The prompt-cache file
    file: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// The subcommand.
pub(crate) fn run(command: &CacheCommand) -> Result<()> {
    match command {
        CacheCommand::Build(args) => build(args),
        CacheCommand::Show(args) => show(args),
    }
}

fn build(args: &BuildArgs) -> Result<()> {
    check_name("--out", &args.out)?;
    let mut settings = Settings::read(&args.config)?;
    settings.notes.iter().for_each(|it| terminal::warning(it));
    let rendering = Rendering::read(&args.chat.template)?;
    let prompts = prompts::read(&args.prompt)?;
    let (model, _) = load::load(&args.model)?;
    let prompts = prompts::with_chat(prompts, &args.chat, &settings.asked, &model)?;
    let prompts = rendering.prepare(prompts, &model)?.into_iter().map(|it| it.prompt);
    settings.merge(&model)?;
    let mut request =
        Request::batch(prompts).overrides(settings.flags.clone()).config(settings.file.clone());
    if let Some(hook) = args.steering.hook(&model)? {
        request = request.hook(hook);
    }
    let spinner = Spinner::new("reading the prompt");
    let cache = model.read(request).map_err(|e| settings.explain(e.into(), &model))?;
    drop(spinner);
    model.save_cache(&cache, &args.out)?;
    terminal::note(&format!(
        "{} tokens, {} bytes, in {}",
        cache.len(),
        cache.live_bytes(),
        args.out.display()
    ));
    Ok(())
}

/// mlx-lm knows the format by the end of the name.
pub(crate) fn check_name(flag: &str, path: &Path) -> Result<()> {
    match path.extension() {
        Some(it) if it == "safetensors" => Ok(()),
        _ => {
            let what = format_args!("{flag} {} must end with .safetensors", path.display());
            Err(Failure::usage(what))
        }
    }
}

/// The cache of a file for a prompt that may begin like the text that it holds.
pub(crate) fn for_prompt(path: &Path, prompt: &Prompt, model: &Model) -> Result<KvCache> {
    let file = named(CacheFile::open(path))?;
    if file.tokens().is_some() {
        return Ok(model.load_cache(path)?);
    }
    Ok(model.load_cache_of(path, &prompt.ids(model)?)?)
}

fn show(args: &ShowArgs) -> Result<()> {
    let file = named(CacheFile::open(&args.file))?;
    let mut classes = BTreeMap::<&str, usize>::new();
    let mut bytes = 0;
    for (class, size) in file.layers() {
        *classes.entry(class).or_default() += 1;
        bytes += size;
    }
    let model = file.notes().get("model").map(String::as_str);
    if args.output.format == Format::Json {
        return document::print(&json!({
            "format": file.format(),
            "model": model,
            "tokens": file.len(),
            "token_ids": file.tokens(),
            "bytes": bytes,
            "layers": classes,
            "steering": file.steering(),
            "fingerprint": file.origin().map(|it| it.fingerprint),
            "options": file.options(),
        }));
    }
    let layers = classes.iter().map(|(class, count)| format!("{count} × {class}"));
    let kept = file.options().map_or("as in its layers".to_owned(), described);
    for (name, value) in [
        ("format", file.format().to_owned()),
        ("model", model.unwrap_or("unknown").to_owned()),
        ("tokens", file.len().to_string()),
        ("bytes", bytes.to_string()),
        ("layers", layers.collect::<Vec<_>>().join(", ")),
        ("keeps", kept),
        ("steering", file.steering().unwrap_or("none").to_owned()),
    ] {
        terminal::line(format_args!("{name:<10}{value}"))?;
    }
    Ok(())
}

fn described(options: &CacheOptions) -> String {
    let mut text = match options.bound {
        None => "all tokens".to_owned(),
        Some((keep, size)) => format!("the first {keep} tokens and the newest, {size} in all"),
    };
    if let Some(how) = options.quantization {
        text += &format!(", in {} bits and groups of {}", how.bits, how.group_size);
    }
    text
}
