//! `mlxgk info`.

use clap::Args;
use mlx_genkit::Model;

use crate::{
    document::{self, ModelInfo},
    failure::Result,
    flags::{Format, ModelArgs, OutputArgs},
    load, terminal,
};

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The subcommand.
pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let (model, _) = load::load(&args.model)?;
    let info = ModelInfo::of(&model);
    match args.output.format {
        Format::Json => document::print(&info),
        Format::Text => print(&info, &model),
    }
}

fn print(info: &ModelInfo, model: &Model) -> Result<()> {
    let parts = &info.components;
    let sliding = info.windows.iter().flatten().count();
    let layers = match info.windows.iter().flatten().next() {
        Some(window) => format!("{} ({sliding} with a window of {window})", parts.layers),
        None => parts.layers.to_string(),
    };
    let head = if parts.lm_head == "tied" { "tied to the embedding" } else { "its own" };
    let tokenizer = info.tokenizer_size.map(|size| format!("{size} tokens"));
    let chat_template = match model.chat_template() {
        Ok(_) => "yes".to_owned(),
        Err(_) if !model.has_chat_template() => "none".to_owned(),
        Err(e) => format!("unusable: {e}"),
    };
    let rows = [
        ("model", info.model.clone()),
        ("type", info.model_type.clone()),
        ("parameters", thousands(info.parameters)),
        ("weights", bytes(info.bytes)),
        ("computes in", info.dtype.clone()),
        ("embedding", format!("{} tokens × {}", parts.embedding[0], parts.embedding[1])),
        ("layers", layers),
        ("head", head.to_owned()),
        ("context", format!("{} tokens", info.max_position_embeddings)),
        ("KV cache", format!("{} per token", bytes(info.kv_bytes_per_token))),
        ("tokenizer", tokenizer.unwrap_or_else(|| "none".to_owned())),
        ("chat template", chat_template),
    ];
    let skipped = model.decoder().skipped().iter();
    let skipped: Vec<String> =
        skipped.map(|it| format!("{} ({} tensors)", it.part, it.tensors)).collect();
    let left_out = (!skipped.is_empty()).then(|| ("left out", skipped.join(", ")));
    for (name, value) in rows.into_iter().chain(left_out) {
        terminal::line(format_args!("{name:<14} {value}"))?;
    }
    Ok(())
}

pub(crate) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub(crate) fn bytes(count: usize) -> String {
    let count = count as f64;
    match count {
        it if it >= 1e9 => format!("{:.2} GB", it / 1e9),
        it if it >= 1e6 => format!("{:.1} MB", it / 1e6),
        it if it >= 1e3 => format!("{:.1} kB", it / 1e3),
        it => format!("{it} B"),
    }
}
