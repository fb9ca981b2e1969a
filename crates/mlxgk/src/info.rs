//! `mlxgk info`.

use mlx_genkit::{kv_cache::LayerSpec, mlx_models::detect_components};
use serde_json::json;

use crate::{
    args::{Format, InfoArgs},
    failure::Result,
    load, terminal,
};

pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let (model, _) = load::load(&args.model)?;
    let decoder = model.decoder();
    let parts = detect_components(decoder);
    let footprint = decoder.footprint();
    let dtype = format!("{:?}", decoder.dtype()).to_lowercase();
    let windows: Vec<Option<usize>> = decoder
        .layers()
        .iter()
        .map(|it| match it {
            LayerSpec::Sliding { window } => Some(*window),
            _ => None,
        })
        .collect();
    let tokenizer = model.tokenizer().ok().map(|it| it.vocab_size());
    if args.format == Format::Json {
        let document = json!({
            "model": model.name(),
            "model_type": decoder.model_type(),
            "parameters": footprint.parameters,
            "bytes": footprint.bytes,
            "dtype": dtype,
            "components": {
                "embedding": parts.embedding,
                "layers": parts.layers,
                "norm": true,
                "lm_head": if parts.tied_head { "tied" } else { "own" },
                "quantized_head": parts.quantized,
            },
            "windows": windows,
            "max_position_embeddings": decoder.max_positions(),
            "kv_bytes_per_token": decoder.kv_bytes_per_token(),
            "tokenizer_size": tokenizer,
            "chat_template": model.has_chat_template(),
            "eos_token_id": model.generation_config().get("eos_token_id"),
        });
        return Ok(terminal::line(document)?);
    }
    let sliding = windows.iter().flatten().count();
    let window = windows.iter().flatten().next();
    let layers = match window {
        Some(window) => format!("{} ({sliding} with a window of {window})", parts.layers),
        None => parts.layers.to_string(),
    };
    let chat_template = match model.chat_template() {
        Ok(_) => "yes".to_owned(),
        Err(_) if !model.has_chat_template() => "none".to_owned(),
        Err(e) => format!("unusable: {e}"),
    };
    let rows = [
        ("model", model.name().to_owned()),
        ("type", decoder.model_type().to_owned()),
        ("parameters", thousands(footprint.parameters)),
        ("weights", bytes(footprint.bytes)),
        ("computes in", dtype),
        ("embedding", format!("{} tokens × {}", parts.embedding[0], parts.embedding[1])),
        ("layers", layers),
        ("head", if parts.tied_head { "tied to the embedding" } else { "its own" }.to_owned()),
        ("context", format!("{} tokens", decoder.max_positions())),
        ("KV cache", format!("{} per token", bytes(decoder.kv_bytes_per_token()))),
        ("tokenizer", tokenizer.map_or("none".to_owned(), |size| format!("{size} tokens"))),
        ("chat template", chat_template),
    ];
    for (name, value) in rows {
        terminal::line(format_args!("{name:<14} {value}"))?;
    }
    Ok(())
}

fn thousands(count: usize) -> String {
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

fn bytes(count: usize) -> String {
    let count = count as f64;
    match count {
        it if it >= 1e9 => format!("{:.2} GB", it / 1e9),
        it if it >= 1e6 => format!("{:.1} MB", it / 1e6),
        it if it >= 1e3 => format!("{:.1} kB", it / 1e3),
        it => format!("{it} B"),
    }
}
