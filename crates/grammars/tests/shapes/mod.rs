//! One small tokenizer of each published shape.

#![allow(clippy::needless_pass_by_value, reason = "each value is made for one call")]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]
#![allow(dead_code, reason = "not every test uses all of it")]

use mlxgk_tokenizer_bridge::{Files, Tokenizer};
use serde_json::{Map, Value, json};

/// Words that are tokens of their own, beside single characters.
const WORDS: [&str; 24] = [
    "the", "name", "true", "false", "null", "on", "at", "red", "blue", "12", "00", "ab", "abc",
    "\": ", "{\"", "\"}", "\", \"", "[]", "}]", "><", "im", "end", "_end", "tru",
];

/// A tokenizer and what a test has to know of it.
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    /// The token that ends a text.
    pub(crate) end: u32,
    /// Tokens of a text that comes before, and their text.
    pub(crate) prompt: Vec<u32>,
}

impl Shape {
    fn new(name: &'static str, json: Value, end: &str) -> Self {
        let text = json.to_string();
        assert!(text.len() < 60_000, "{name} has {} bytes", text.len());
        let files = Files { tokenizer: Some(text.into_bytes().into()), ..Files::default() };
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        let end = tokenizer.token_to_id(end).unwrap();
        let prompt = tokenizer.encode("the end", false).unwrap();
        Self { name: name.to_owned(), tokenizer, end, prompt }
    }

    /// The tokenizer of a folder.
    pub(crate) fn published(folder: &std::path::Path) -> Self {
        let tokenizer = Tokenizer::from_folder(folder).unwrap();
        let special = tokenizer.special_tokens();
        let end = special.iter().find(|(name, _)| *name == "eos_token").map(|(_, text)| text);
        // Some folders do not say which token ends a text; any special one will do.
        let end = end.and_then(|it| tokenizer.token_to_id(it));
        let ids = 0..tokenizer.texts().len() as u32;
        let end = end.or_else(|| ids.rev().find(|&id| tokenizer.texts().is_special(id))).unwrap();
        let prompt = tokenizer.encode("the end", false).unwrap();
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            tokenizer,
            end,
            prompt,
        }
    }

    /// The text that generated tokens add to the prompt's, as the tokenizer itself decodes it.
    pub(crate) fn text(&self, tokens: &[u32]) -> String {
        let before = self.tokenizer.decode(&self.prompt, true).unwrap();
        let whole = self.tokenizer.decode(&[&self.prompt[..], tokens].concat(), true).unwrap();
        whole.strip_prefix(&before).unwrap().to_owned()
    }
}

pub(crate) fn all() -> Vec<Shape> {
    vec![
        Shape::new("Llama 2 (legacy)", llama_2(), "</s>"),
        Shape::new("Metaspace, prepended first", metaspace("first"), "</s>"),
        Shape::new("Metaspace, always prepended", metaspace("always"), "</s>"),
        Shape::new("Gemma", gemma(), "<eos>"),
        Shape::new("byte level", byte_level(false, json!({})), "<|im_end|>"),
        Shape::new("byte level with a space before", byte_level(true, json!({})), "<|im_end|>"),
        Shape::new("tiktoken", tiktoken(), "<|im_end|>"),
        Shape::new("WordPiece", word_piece(), "[SEP]"),
        Shape::new("Unigram", unigram(), "</s>"),
    ]
}

fn special(id: usize, content: &str) -> Value {
    added(id, content, true)
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
           "rstrip": false, "normalized": false})
}

/// A byte-pair vocabulary of `first`, then the characters and words, and the merges that make words.
fn pairs(first: Vec<String>, characters: &[String], words: &[String]) -> (Value, Value) {
    let mut vocab = Map::new();
    for token in first.into_iter().chain(characters.iter().cloned()) {
        let id = vocab.len();
        vocab.entry(token).or_insert(id.into());
    }
    let mut merges = Vec::new();
    for word in words {
        let chars: Vec<String> = word.chars().map(String::from).collect();
        let mut left = chars[0].clone();
        for right in &chars[1..] {
            merges.push(json!([left, right]));
            left.push_str(right);
            let id = vocab.len();
            vocab.entry(left.clone()).or_insert(id.into());
        }
    }
    merges.dedup();
    (vocab.into(), merges.into())
}

fn ascii() -> Vec<String> {
    (' '..='~').map(String::from).collect()
}

fn spaced(words: &[&str]) -> Vec<String> {
    let plain = words.iter().map(|it| it.replace(' ', "▁"));
    let behind = words.iter().filter(|it| it.starts_with(char::is_alphanumeric));
    plain.chain(behind.map(|it| format!("▁{it}"))).collect()
}

fn sentence_piece(extra: &[&str]) -> (Value, Value) {
    let mut first: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    first.extend(extra.iter().map(|it| (*it).to_owned()));
    first.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let characters: Vec<String> = ascii()
        .into_iter()
        .map(|it| it.replace(' ', "▁"))
        .chain(["é".into(), "日".into()])
        .collect();
    pairs(first, &characters, &spaced(&WORDS))
}

fn fallback_decoder(strip: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

fn bpe(vocab: Value, merges: Value) -> Value {
    json!({"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
           "vocab": vocab, "merges": merges})
}

fn llama_2() -> Value {
    let (vocab, merges) = sentence_piece(&[]);
    json!({
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": fallback_decoder(true),
        "model": bpe(vocab, merges),
    })
}

fn metaspace(scheme: &str) -> Value {
    let (vocab, merges) = sentence_piece(&[]);
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    json!({
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "pre_tokenizer": metaspace,
        "decoder": fallback_decoder(true),
        "model": bpe(vocab, merges),
    })
}

/// With the runs of spaces that Gemma's files list as added tokens.
fn gemma() -> Value {
    let runs: Vec<String> = (2..=8).map(|len| "▁".repeat(len)).collect();
    let mut extra = vec!["<eos>", "<mask>"];
    extra.extend(runs.iter().map(String::as_str));
    let (vocab, merges) = sentence_piece(&extra);
    let mut tokens = vec![special(0, "<unk>"), special(3, "<eos>"), added(4, "<mask>", false)];
    tokens.extend(runs.iter().enumerate().map(|(at, run)| added(5 + at, run, false)));
    json!({
        "added_tokens": tokens,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": fallback_decoder(false),
        "model": bpe(vocab, merges),
    })
}

/// GPT-2's letters for bytes.
fn letters() -> Vec<String> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    (0..256_u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect()
}

fn byte_words() -> Vec<String> {
    let plain = WORDS.iter().map(|it| it.replace(' ', "Ġ"));
    let behind = WORDS.iter().filter(|it| it.starts_with(char::is_alphanumeric));
    plain.chain(behind.map(|it| format!("Ġ{it}"))).collect()
}

fn byte_level(add_prefix_space: bool, pre_tokenizer: Value) -> Value {
    let (vocab, merges) = pairs(Vec::new(), &letters(), &byte_words());
    let first = vocab.as_object().unwrap().len();
    let own = json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space,
                     "trim_offsets": true, "use_regex": true});
    let split = pre_tokenizer.get("type").is_some();
    json!({
        "added_tokens": [special(first, "<|im_start|>"), special(first + 1, "<|im_end|>"),
                         added(first + 2, "<think>", false)],
        "pre_tokenizer": if split { pre_tokenizer } else { own },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": split},
    })
}

fn tiktoken() -> Value {
    let pattern =
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    byte_level(
        false,
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]}),
    )
}

/// Only characters of ASCII are tokens, alone and within a word.
fn word_piece() -> Value {
    let mut vocab = Map::new();
    let tokens = ["[UNK]", "[SEP]"].map(String::from).into_iter();
    let characters = ascii().into_iter().flat_map(|it| [it.clone(), format!("##{it}")]);
    let words = WORDS.iter().filter(|it| !it.contains(' '));
    let words = words.flat_map(|it| [(*it).to_owned(), format!("##{it}")]);
    for token in tokens.chain(characters).chain(words) {
        let id = vocab.len();
        vocab.entry(token).or_insert(id.into());
    }
    json!({
        "added_tokens": [special(0, "[UNK]"), special(1, "[SEP]")],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]",
                  "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    })
}

/// T5's kind, without bytes to fall back on.
fn unigram() -> Value {
    let mut vocab = vec![json!(["<unk>", 0.0]), json!(["</s>", 0.0])];
    let characters = ascii().into_iter().map(|it| it.replace(' ', "▁"));
    vocab.extend(characters.map(|it| json!([it, -5.0])));
    vocab.extend(spaced(&WORDS).into_iter().map(|it| json!([it, -3.0])));
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    json!({
        "added_tokens": [special(0, "<unk>"), special(1, "</s>")],
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
    })
}
