//! A conversation to token ids and an answer's ids to text, with a tokenizer made in memory.
//!
//! `cargo run -p mlxgk-tokenizer-bridge --example template`, or with a model folder as its argument.

use std::io::Write;

use mlxgk_tokenizer_bridge::{ChatTemplate, Files, Message, RenderOptions, SpecialIds, Tokenizer};
use serde_json::json;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = match std::env::args().nth(1) {
        Some(folder) => Files::from_folder(folder)?,
        None => byte_tokenizer(),
    };
    let tokenizer = Tokenizer::from_files(&files)?;
    let template = ChatTemplate::from_files(&files)?;
    let special = SpecialIds::from_files(&files, Some(&tokenizer))?;
    let mut out = std::io::stdout().lock();

    let messages =
        [Message::new("system", "You are a pirate."), Message::new("user", "Où est le port ?")];
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let prompt = template.render(&messages, &options)?;
    writeln!(out, "{prompt}")?;

    // The template has written the special tokens itself, so none are added.
    let ids = tokenizer.encode(&prompt, false)?;
    writeln!(out, "{} tokens: {ids:?}", ids.len())?;

    // A model would make these one by one.
    let mut answer = tokenizer.encode("Là-bas, matelot 🏴‍☠️!", false)?;
    answer.extend(&special.eos);
    let mut stream = tokenizer.stream(true);
    for id in answer {
        write!(out, "{}", stream.push(id)?)?;
        out.flush()?;
    }
    writeln!(out, "{}", stream.flush()?)?;
    Ok(())
}

/// A byte-level tokenizer without merges, so that every byte is a token, and a ChatML template.
fn byte_tokenizer() -> Files<'static> {
    // GPT-2's alphabet: printable Latin-1 stands for itself, the rest begins at U+0100.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..256u32).filter(|&byte| !printable(byte)).zip(0x100u32..).map(|(_, code)| code);
    let alphabet = (0..256u32).filter(|&byte| printable(byte)).chain(others);
    let vocab: serde_json::Map<_, _> = alphabet
        .enumerate()
        .filter_map(|(id, code)| Some((char::from_u32(code)?.to_string(), id.into())))
        .collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let template = "{%- for message in messages %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}";
    let config = json!({"eos_token": "<|im_end|>", "chat_template": template});
    Files {
        tokenizer: Some(tokenizer.to_string().into_bytes().into()),
        tokenizer_config: Some(config.to_string().into_bytes().into()),
        ..Files::default()
    }
}
