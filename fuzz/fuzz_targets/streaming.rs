//! Streamed text is the text of all ids at once, and what each token spells put together is that
//! text where no end of it is touched, for any decoder and any ids.
//!
//! The first byte chooses the decoder, the others are ids.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mlxgk_tokenizer_bridge::{Files, Tokenizer};
use serde_json::{Map, Value, json};

const TOKENS: [&str; 28] = [
    "a", "▁", "▁a", "▁▁", "##b", "b</w>", "</w>", " ", "  ", " a", "a ", "Ã", "©", "ð", "Ł", "Ġ",
    "日", "é", "<0xC3>", "<0xA9>", "<0x41>", "<0x+F>", "<0xFF>", "'", "n't", ".", "|", "<pad>",
];

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let fallback = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    [
        Value::Null,
        byte_level,
        json!({"type": "Sequence", "decoders": [replace, fallback, fuse, strip]}),
        json!({"type": "Sequence", "decoders": [replace, fallback, fuse]}),
        metaspace,
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}),
    ]
    .iter()
    .map(tokenizer)
    .collect()
});

fn tokenizer(decoder: &Value) -> Tokenizer {
    let vocab: Map<String, Value> =
        TOKENS.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    let special = json!({"id": TOKENS.len(), "content": "<s>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false});
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "a"});
    let json = json!({"added_tokens": [special], "decoder": decoder, "model": model}).to_string();
    let files = Files { tokenizer: Some(json.into_bytes().into()), ..Files::default() };
    Tokenizer::from_files(&files).unwrap()
}

fuzz_target!(|data: &[u8]| {
    let [pick, ids @ ..] = data else { return };
    let tokenizer = &TOKENIZERS[usize::from(pick / 2) % TOKENIZERS.len()];
    let skip = pick % 2 == 0;
    let ids: Vec<u32> = ids.iter().map(|id| u32::from(*id) % (TOKENS.len() as u32 + 3)).collect();
    let whole = tokenizer.decode(&ids, skip).unwrap();

    let mut stream = tokenizer.stream(skip);
    let mut pieces = String::new();
    for &id in &ids {
        pieces.push_str(stream.push(id).unwrap());
    }
    pieces.push_str(stream.flush().unwrap());
    assert_eq!(pieces, whole);

    let known = ids
        .iter()
        .any(|id| tokenizer.id_to_token(*id).is_some_and(|_| !skip || !tokenizer.is_special(*id)));
    if known {
        assert_eq!(tokenizer.inner().decode(&ids, skip).unwrap(), whole);
    }
});
