//! The strict loader: what is wrong with a folder is said by file, field or tensor.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use mlxgk_mlx_models::{ComputeDtype, Decoder, ErrorKind, NoHook};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

/// A copy of a fixture's folder that a test may break.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// Rewrites a safetensors header; the data stays.
fn edit_header(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    let mut edited = (header.len() as u64).to_le_bytes().to_vec();
    edited.extend_from_slice(header.as_bytes());
    edited.extend_from_slice(&bytes[8 + length..]);
    fs::write(path, edited).unwrap();
}

#[track_caller]
fn check(folder: &Path, kind: ErrorKind, words: &[&str]) {
    let error = Decoder::load(folder, ComputeDtype::Auto).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
    assert!(!error.to_string().contains('\n'), "more than one line: {error}");
}

#[test]
fn missing_files_are_named() {
    let folder = copy("llama");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    check(folder.path(), ErrorKind::File, &["no weights", "model.safetensors"]);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    check(folder.path(), ErrorKind::File, &["config.json"]);
    check(&folder.path().join("nowhere"), ErrorKind::File, &["no folder", "nowhere"]);
}

#[test]
fn damaged_weights_are_named() {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for (bytes, word) in [
        (&whole[..whole.len() - 7], "damaged"),
        (&whole[..100], "truncated"),
        (&whole[..4], "truncated"),
        (&[][..], "truncated"),
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "git lfs pull"),
        (&[b"\x10\0\0\0\0\0\0\0".as_slice(), &[b'x'; 16]].concat()[..], "corrupt header"),
    ] {
        fs::write(&path, bytes).unwrap();
        check(folder.path(), ErrorKind::Weights, &["model.safetensors", word]);
    }
}

#[test]
fn tensors_are_asked_for_by_name_and_shape() {
    let renamed = copy("llama");
    edit_header(renamed.path(), |header| {
        let header = header.as_object_mut().unwrap();
        let tensor = header.remove("model.norm.weight").unwrap();
        header.insert("model.nerm.weight".to_owned(), tensor);
    });
    check(renamed.path(), ErrorKind::Weights, &["`model.norm.weight` is missing"]);

    let extra = copy("llama");
    edit_config(extra.path(), |config| config["num_hidden_layers"] = json!(1));
    check(extra.path(), ErrorKind::Weights, &["no tensor `model.layers.1."]);

    let reshaped = copy("llama");
    edit_config(reshaped.path(), |config| {
        let width = config["intermediate_size"].as_u64().unwrap();
        config["intermediate_size"] = json!(width + 1);
    });
    check(reshaped.path(), ErrorKind::Weights, &["mlp.gate_proj.weight` has shape"]);
}

#[test]
fn config_fields_are_named() {
    for (field, value, words) in [
        ("model_type", json!("bert"), vec!["\"bert\"", "qwen3_moe"]),
        ("model_type", json!(7), vec!["`model_type` must be a string, found 7"]),
        ("hidden_size", json!("wide"), vec!["`hidden_size` must be a whole number"]),
        ("num_hidden_layers", json!(0), vec!["`num_hidden_layers` must be above 0"]),
        (
            "num_hidden_layers",
            json!(1_000_000_000_000_u64),
            vec!["`num_hidden_layers` is 1000000000000"],
        ),
        ("head_dim", json!(0), vec!["`head_dim` must be above 0"]),
        ("vocab_size", json!(1_u64 << 40), vec!["`vocab_size` is 1099511627776"]),
        ("max_position_embeddings", json!(0), vec!["`max_position_embeddings` must be above 0"]),
        ("rope_scaling", json!({"rope_theta": 0}), vec!["`rope_theta` must be above 0"]),
        ("num_attention_heads", Value::Null, vec!["`num_attention_heads` is missing"]),
        ("num_key_value_heads", json!(3), vec!["`num_key_value_heads` is 3"]),
        ("rope_scaling", json!({"rope_type": "spiral"}), vec!["`rope_type` is \"spiral\""]),
        ("rope_scaling", json!({"rope_type": "linear"}), vec!["`factor` is missing"]),
        ("hidden_act", json!("relu6"), vec!["`hidden_act` is \"relu6\""]),
        ("quantization_config", json!({"quant_method": "awq"}), vec!["\"awq\""]),
    ] {
        let folder = copy("llama");
        edit_config(folder.path(), |config| config[field] = value.clone());
        check(folder.path(), ErrorKind::Config, &words);
    }
}

#[test]
fn tokens_are_checked_before_mlx_sees_them() {
    let model = Decoder::load(&fixture("llama"), ComputeDtype::Auto).unwrap();
    let vocab = model.vocab_size() as u32;
    for rows in [&[&[0, vocab][..]][..], &[&[]], &[&[0, 1], &[0]], &[]] {
        assert_eq!(model.logits_of(rows).unwrap_err().kind(), ErrorKind::Tokens);
    }
    let mut other = Decoder::load(&fixture("mistral"), ComputeDtype::Auto).unwrap().new_cache(1);
    let mixed = model.forward(&[&[1]], &mut other, &mut mlxgk_mlx_models::NoHook);
    assert_eq!(mixed.unwrap_err().kind(), ErrorKind::Cache);
}

#[test]
fn a_model_in_memory_equals_the_same_model_on_disk() {
    for name in ["llama", "llama-llama3", "llama-q4"] {
        let folder = fixture(name);
        let read = |file: &str| fs::read(folder.join(file)).unwrap();
        let on_disk = Decoder::load(&folder, ComputeDtype::Auto).unwrap();
        let in_memory = Decoder::from_bytes(
            &read("config.json"),
            &read("model.safetensors"),
            ComputeDtype::Auto,
        )
        .unwrap();
        assert_eq!(on_disk.footprint(), in_memory.footprint());
        let logits = |model: &Decoder| -> Vec<f32> {
            model.logits_of(&[&[3, 1, 4, 1, 5]]).unwrap().to_vec_exact().unwrap()
        };
        assert_eq!(logits(&on_disk), logits(&in_memory));
    }
}

/// A folder of a model that also sees, as the two libraries name its tensors, gives what the text
/// model alone gives.
#[test]
fn of_a_model_that_sees_the_language_model_is_run() {
    let logits = |folder: &Path| {
        let model = Decoder::load(folder, ComputeDtype::Float32).unwrap();
        let mut cache = model.new_cache(1);
        let hidden = model.hidden(&[&[5, 17, 42]], &mut cache, &mut NoHook).unwrap();
        model.logits(&hidden).unwrap().try_as_slice::<f32>().unwrap().to_vec()
    };
    let expected = logits(&fixture("gemma3"));
    for (of_body, of_head) in [
        ("language_model.model.", "language_model.lm_head."),
        ("model.language_model.", "lm_head."),
    ] {
        let folder = copy("gemma3");
        edit_config(folder.path(), |config| {
            let mut text = config.take();
            text["model_type"] = "gemma3_text".into();
            *config = json!({"model_type": "gemma3", "text_config": text, "vision_config": {}});
        });
        edit_header(folder.path(), |header| {
            let tensors = std::mem::take(header.as_object_mut().unwrap());
            let rename = |name: String| match name.strip_prefix("model.") {
                Some(rest) => format!("{of_body}{rest}"),
                None => name.replace("lm_head.", of_head),
            };
            *header = tensors.into_iter().map(|(name, it)| (rename(name), it)).collect();
        });
        assert_eq!(logits(folder.path()), expected, "{of_body}");
    }
}
