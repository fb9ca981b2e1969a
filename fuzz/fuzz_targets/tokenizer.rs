//! A `tokenizer.json` and its configs of any content: refused in a sentence, or a tokenizer that
//! encodes and decodes without a panic.
//!
//! The first byte says where `tokenizer_config.json` begins.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxgk_tokenizer_bridge::{ChatTemplate, Files, SpecialIds, Tokenizer};

fuzz_target!(|data: &[u8]| {
    let [cut, data @ ..] = data else { return };
    let (json, config) = data.split_at(data.len() * usize::from(*cut) / 255);
    let files = Files {
        tokenizer: Some(json.into()),
        tokenizer_config: (!config.is_empty()).then(|| config.into()),
        special_tokens_map: (cut % 2 == 0).then(|| config.into()),
        added_tokens: (cut % 3 == 0).then(|| config.into()),
        config: Some(config.into()),
        generation_config: Some(config.into()),
        ..Files::default()
    };
    let _ = ChatTemplate::from_files(&files);
    let Ok(tokenizer) = Tokenizer::from_files(&files) else { return };
    let _ = SpecialIds::from_files(&files, Some(&tokenizer));
    if let Ok(ids) = tokenizer.encode("Hello, wörld  日本 <s>", true) {
        tokenizer.decode(&ids, true).unwrap();
    }
    let _ = tokenizer.encode_continuation("{\"a\": true}");
    let _ = tokenizer.texts();
});
