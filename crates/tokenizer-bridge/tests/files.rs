//! Folders and files that cannot be used, and ids gathered from several of them.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::fs;

use mlxgk_tokenizer_bridge::{ErrorKind, Files, IdSource, SpecialIds, Tokenizer};
use serde_json::json;

const WORDS: &str = r#"{
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "a": 1, "</s>": 2, "<pad>": 3}}
}"#;

/// Kind and sentence of the error a folder with these files gives; `~` stands for the folder.
fn error_of(files: &[(&str, &[u8])]) -> (ErrorKind, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    (error.kind(), error.to_string().replace(&folder.path().display().to_string(), "~"))
}

#[test]
fn folders() {
    let error = Files::from_folder("/no/such/folder").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(error.to_string(), "/no/such/folder does not exist");

    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Files::from_folder(file.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("{} is not a folder", file.path().display()));
}

#[test]
fn a_folder_without_a_tokenizer() {
    let sentence = "~/tokenizer.json does not exist, so text cannot be encoded or decoded";
    assert_eq!(error_of(&[]), (ErrorKind::MissingTokenizer, sentence.to_owned()));
}

#[test]
fn tokenizers_that_cannot_be_read() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    let cases: [(&[u8], &str); 9] = [
        (b"{\"model\": \xff}", "not UTF-8 at byte 10"),
        (pointer, "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"),
        (b"", "EOF while parsing"),
        (b"{\"model\": ", "EOF while parsing"),
        (b"[]", "expected struct Tokenizer"),
        (b"{}", "Model missing"),
        // The `tokenizers` crate panics on these two.
        (br#"{"decoder": {"type": "Fuse", ], "model": {}}"#, "at line 1 column"),
        (
            br#"{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}, "model": {}}"#,
            "`normalizer.precompiled_charsmap` is not base64 of a character map",
        ),
        (
            br#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled"}]}}"#,
            "`normalizer.normalizers[0].precompiled_charsmap` is not base64 of a character map",
        ),
    ];
    for (content, what) in cases {
        let (kind, sentence) = error_of(&[("tokenizer.json", content)]);
        assert_eq!(kind, ErrorKind::File, "{sentence}");
        assert!(sentence.starts_with("~/tokenizer.json"), "{sentence}");
        assert!(sentence.contains(what), "{sentence}");
        assert!(!sentence.ends_with('.'), "{sentence}");
    }
}

#[test]
fn configs_that_cannot_be_read() {
    let cases: [(&str, &[u8], &str); 7] = [
        ("tokenizer_config.json", b"{", "EOF while parsing"),
        ("tokenizer_config.json", b"[1]", "expected a map"),
        ("tokenizer_config.json", br#"{"eos_token": 2}"#, "`eos_token` is not a token"),
        (
            "tokenizer_config.json",
            br#"{"extra_special_tokens": [1]}"#,
            "`extra_special_tokens` is not a list of tokens",
        ),
        (
            "tokenizer_config.json",
            br#"{"clean_up_tokenization_spaces": "no"}"#,
            "`clean_up_tokenization_spaces` is not a boolean",
        ),
        (
            "tokenizer_config.json",
            br#"{"added_tokens_decoder": {"x": {}}}"#,
            "`added_tokens_decoder` is keyed by `x`, which is not a token id",
        ),
        ("special_tokens_map.json", b"nule", "expected ident"),
    ];
    for (file, content, what) in cases {
        let (kind, sentence) = error_of(&[("tokenizer.json", WORDS.as_bytes()), (file, content)]);
        assert_eq!(kind, ErrorKind::File);
        assert!(sentence.starts_with(&format!("~/{file}: ")), "{sentence}");
        assert!(sentence.contains(what), "{sentence}");
    }
}

#[test]
fn a_text_the_vocabulary_cannot_express() {
    let json = WORDS.replace("\"?\": 0, ", "");
    let files = Files { tokenizer: Some(json.into_bytes().into()), ..Files::default() };
    let error = Tokenizer::from_files(&files).unwrap().encode("z", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
    assert!(error.to_string().starts_with("cannot encode the text: "), "{error}");
}

/// The ids of these files, with the tokenizer's.
fn ids(
    config: &str,
    generation_config: &str,
    tokenizer_config: &str,
) -> Result<SpecialIds, String> {
    let some = |it: &str| (!it.is_empty()).then(|| it.as_bytes().to_vec().into());
    let files = Files {
        tokenizer: some(WORDS),
        tokenizer_config: some(tokenizer_config),
        config: some(config),
        generation_config: some(generation_config),
        ..Files::default()
    };
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    SpecialIds::from_files(&files, Some(&tokenizer)).map_err(|error| error.to_string())
}

#[test]
fn the_tokenizer_is_asked_last() {
    let named = r#"{"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "a"}"#;
    let expected = SpecialIds {
        bos: Some(1),
        eos: vec![2],
        pad: Some(2),
        eos_source: Some(IdSource::Tokenizer),
    };
    assert_eq!(ids("", "", named).unwrap(), expected);
    assert_eq!(ids("", r#"{"temperature": 0.6}"#, named).unwrap(), expected);

    let got = ids(r#"{"eos_token_id": 3}"#, r#"{"bos_token_id": 0}"#, named).unwrap();
    assert_eq!((got.bos, got.eos, got.eos_source), (Some(0), vec![3], Some(IdSource::Config)));

    // Without an end token the tokenizer's own padding is left.
    let got = ids("", "", r#"{"pad_token": "<pad>"}"#).unwrap();
    assert_eq!((got.eos, got.pad, got.eos_source), (vec![], Some(3), None));
    // `null` in `generation_config.json` is an answer, in `config.json` it is none.
    let got = ids(r#"{"eos_token_id": null}"#, "", named).unwrap();
    assert_eq!(got.eos_source, Some(IdSource::Tokenizer));
    let got = ids(r#"{"eos_token_id": 3}"#, r#"{"eos_token_id": null}"#, named).unwrap();
    assert_eq!((got.eos, got.eos_source), (vec![], None));
    // Early Llama configs have -1 for none.
    let got = ids(r#"{"eos_token_id": 2, "pad_token_id": -1}"#, "", "").unwrap();
    assert_eq!(got.pad, Some(2));
}

#[test]
fn ids_that_are_none() {
    for wrong in [json!("2"), json!(1.5), json!(true), json!([1, "2"]), json!(4_294_967_296_u64)] {
        let config = json!({"eos_token_id": wrong}).to_string();
        let expected =
            "generation_config.json: `eos_token_id` is not a token id or a list of token ids";
        assert_eq!(ids("", &config, "").unwrap_err(), expected);
    }
    assert!(ids("", "{", "").unwrap_err().starts_with("generation_config.json: EOF"));
}

#[test]
fn tokens_the_config_adds() {
    let config = json!({
        "eos_token": "<end>",
        "extra_special_tokens": ["<tool>"],
        "added_tokens_decoder": {"9": {"content": "<x>", "special": false}},
    });
    let files = Files {
        tokenizer: Some(WORDS.as_bytes().into()),
        tokenizer_config: Some(config.to_string().into_bytes().into()),
        ..Files::default()
    };
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert_eq!(tokenizer.vocab_size(), 7);
    let ids = tokenizer.encode("a<x><end>a<tool>", true).unwrap();
    assert_eq!(ids, [1, 4, 5, 1, 6]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a <x> a");
    assert_eq!(
        (tokenizer.is_special(5), tokenizer.is_special(4), tokenizer.is_special(99)),
        (true, false, false)
    );
}
