//! Streamed pieces put together are the text of all ids at once, for every kind of decoder and for
//! ids no encoder would give.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_tokenizer_bridge::{Files, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Tokens that mean something to some decoder, and pieces of what they could mean.
const TOKENS: [&str; 40] = [
    "a",
    "b",
    "▁",
    "▁a",
    "a▁b",
    "▁▁",
    "##",
    "##b",
    "a</w>",
    "</w>",
    "b</w></w>",
    " ",
    "  ",
    " a",
    "a ",
    "Ã",
    "©",
    "Ãa",
    "ð",
    "Ł",
    "Ĺ",
    "¢",
    "Ġ",
    "Ċ",
    "日",
    "é",
    "<0xC3>",
    "<0xA9>",
    "<0x41>",
    "<0x+F>",
    "<0xFF>",
    "<0x4>",
    "'",
    "n't",
    ".",
    " '",
    "s",
    "ve",
    "|",
    "<pad>",
];

/// Decoders as `tokenizer.json` has them; `null` is none.
fn decoders() -> Vec<Value> {
    let replace = |pattern: Value| json!({"type": "Replace", "pattern": pattern, "content": " "});
    let space = replace(json!({"String": "▁"}));
    let fallback = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let strip = |start: u32, stop: u32| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    let sequence = |decoders: &[&Value]| json!({"type": "Sequence", "decoders": decoders});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let word_piece =
        |cleanup: bool| json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup});
    let word_end = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let ctc =
        json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    vec![
        Value::Null,
        byte_level.clone(),
        sequence(&[&space, &fallback, &fuse, &strip(1, 0)]),
        sequence(&[&space, &fallback, &fuse]),
        sequence(&[&space, &fallback, &fuse, &strip(2, 0), &strip(1, 0)]),
        sequence(&[&fallback, &metaspace("always")]),
        metaspace("always"),
        metaspace("first"),
        metaspace("never"),
        word_piece(true),
        word_piece(false),
        word_end.clone(),
        ctc.clone(),
        sequence(&[&ctc, &metaspace("always")]),
        sequence(&[&byte_level, &byte_level]),
        // A pattern over the whole text, which only the flush can give.
        sequence(&[&space, &fuse, &replace(json!({"Regex": " +a"})), &strip(1, 0)]),
        sequence(&[&fuse, &word_piece(true)]),
        sequence(&[&sequence(&[&strip(1, 0), &word_end]), &sequence(&[&fallback])]),
    ]
}

fn tokenizer_json(decoder: &Value) -> String {
    let vocab: serde_json::Map<String, Value> =
        TOKENS.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    let special = json!({"id": TOKENS.len(), "content": "<s>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false});
    let added = json!({"id": TOKENS.len() + 1, "content": "日本<0x41>", "special": false,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": true});
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "a"});
    json!({"added_tokens": [special, added], "decoder": decoder, "model": model}).to_string()
}

fn load(json: &str, config: &Value) -> Tokenizer {
    let config = config.to_string().into_bytes();
    let files = Files {
        tokenizer: Some(json.as_bytes().into()),
        tokenizer_config: Some(config.into()),
        ..Files::default()
    };
    Tokenizer::from_files(&files).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let mut stream = tokenizer.stream(skip);
    let mut text = String::new();
    // Twice, because a flush starts again.
    for _ in 0..2 {
        text.clear();
        for &id in ids {
            text.push_str(stream.push(id).unwrap());
        }
        text.push_str(stream.flush().unwrap());
    }
    text
}

/// transformers' `clean_up_tokenization`, over the whole text.
fn cleaned(text: &str) -> String {
    let apostrophes = ["n't", "'m", "'s", "'ve", "'re"];
    let text =
        [".", "?", "!", ","].iter().fold(text.to_owned(), |it, s| it.replace(&format!(" {s}"), s));
    apostrophes.iter().fold(text.replace(" ' ", "'"), |it, s| it.replace(&format!(" {s}"), s))
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    // Two more than the vocabulary and its added tokens have.
    prop::collection::vec(0..u32::try_from(TOKENS.len()).unwrap() + 4, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn pieces_are_the_whole(ids in ids(), skip: bool) {
        for decoder in decoders() {
            let json = tokenizer_json(&decoder);
            let tokenizer = load(&json, &json!({}));
            let reference: tokenizers::Tokenizer = json.parse().unwrap();
            // The reference counts the tokens' last place before it looks whether there are any.
            let known = ids.iter().any(|&id| tokenizer.id_to_token(id).is_some_and(|_| !skip || !tokenizer.is_special(id)));
            let expected = if known { reference.decode(&ids, skip).unwrap() } else { String::new() };
            prop_assert_eq!(&streamed(&tokenizer, &ids, skip), &expected, "{}", decoder);
            prop_assert_eq!(&tokenizer.decode(&ids, skip).unwrap(), &expected, "{}", decoder);

            let cleaning = load(&json, &json!({"clean_up_tokenization_spaces": true}));
            prop_assert_eq!(streamed(&cleaning, &ids, skip), cleaned(&expected), "{}", decoder);
        }
    }
}

/// A decoder that strips the end of tokens; the `tokenizers` crate panics on tokens shorter than that.
#[test]
fn stripping_the_end_of_short_tokens() {
    let decoder = json!({"type": "Strip", "content": " ", "start": 1, "stop": 2});
    let tokenizer = load(&tokenizer_json(&decoder), &json!({}));
    let id = |token| tokenizer.token_to_id(token).unwrap();
    let ids = [id("  "), id(" "), id("a "), id(" a")];
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "aa");

    let fuse = json!({"type": "Fuse"});
    let decoder = json!({"type": "Sequence", "decoders": [fuse, decoder]});
    let tokenizer = load(&tokenizer_json(&decoder), &json!({}));
    let ids = [id("  "), id("a"), id(" "), id("  "), id("b"), id("  "), id(" ")];
    assert_eq!(streamed(&tokenizer, &ids, false), " a   b ");
    assert_eq!(tokenizer.decode(&[], false).unwrap(), "");
}

/// What is certain is shown at once: holding everything until the flush would be exact, too.
#[test]
fn text_comes_as_soon_as_it_is_certain() {
    let pieces = |decoder: Value, tokens: &[&str]| -> Vec<String> {
        let tokenizer = load(&tokenizer_json(&decoder), &json!({}));
        let mut stream = tokenizer.stream(true);
        let ids = tokens.iter().map(|token| tokenizer.token_to_id(token).unwrap());
        let mut pieces: Vec<String> = ids.map(|id| stream.push(id).unwrap().to_owned()).collect();
        pieces.push(stream.flush().unwrap().to_owned());
        pieces
    };
    let [_, byte_level, llama, ..] = <[Value; 18]>::try_from(decoders()).unwrap();
    let emoji = ["a", "ð", "Ł", "Ĺ", "¢", "Ã", "b"];
    assert_eq!(pieces(byte_level, &emoji), ["a", "", "", "", "🗢", "", "\u{fffd}b", ""]);
    let tokens = ["▁a", "b", "<0xC3>", "<0xA9>", "▁a", "<0xC3>"];
    assert_eq!(pieces(llama, &tokens), ["a", "b", "", "", "é a", "", "\u{fffd}"]);
}
