//! Heads for further tokens: where folders have them, and what they compute.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use mlx_rs::{Array, ops::indexing::IndexOp};
use mlxgk_mlx_models::{ComputeDtype, Decoder, ErrorKind, MtpHeads, NoHook};
use serde_json::{Value, json};

/// Folders, and how many heads each has.
const FOLDERS: [(&str, usize); 5] = [
    ("mtp-glm4-moe", 2),
    ("mtp-deepseek-v3", 3),
    ("mtp-mellum", 1),
    ("mtp-qwen3_5", 1),
    ("mtp-qwen3_5-moe", 1),
];

const TEXT: [u32; 12] = [5, 40, 9, 33, 9, 61, 17, 5, 2, 50, 44, 8];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/assisted").join(name)
}

fn load(folder: &Path) -> (Decoder, MtpHeads) {
    let model = Decoder::load(folder, ComputeDtype::Float32).unwrap();
    let heads = MtpHeads::load(folder, &model).unwrap().unwrap();
    (model, heads)
}

/// A copy of a folder, with other names of tensors and another config.
fn edited(
    name: &str,
    rename: impl Fn(&str) -> String,
    edit: impl FnOnce(&mut Value),
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let read = |file: &str| fs::read(fixture(name).join(file)).unwrap();
    let mut config = serde_json::from_slice(&read("config.json")).unwrap();
    edit(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let bytes = read("model.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(key, _)| *key != "__metadata__");
    let renamed = tensors.map(|(key, it)| (rename(key), it.clone()));
    let header = Value::Object(renamed.collect()).to_string();
    let mut written = (header.len() as u64).to_le_bytes().to_vec();
    written.extend_from_slice(header.as_bytes());
    written.extend_from_slice(&bytes[8 + length..]);
    fs::write(folder.path().join("model.safetensors"), written).unwrap();
    folder
}

fn values(array: &Array) -> Vec<f32> {
    array.contiguous().unwrap().to_vec_exact().unwrap()
}

fn near(a: &Array, b: &Array) -> bool {
    let (a, b) = (values(a), values(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4)
}

/// What each head leaves of the text's columns that it knows the tokens of.
fn all_states(model: &Decoder, heads: &MtpHeads) -> Vec<Array> {
    let mut states = model.hidden(&[&TEXT], &mut model.new_cache(1), &mut NoHook).unwrap();
    let mut left = Vec::new();
    for (head, mut cache) in heads.new_caches().into_iter().enumerate() {
        let count = TEXT.len() - 1 - head;
        let known = states.index((.., ..count as i32, ..));
        states = heads.forward(head, &TEXT[1 + head..], &known, &mut cache).unwrap();
        left.push(states.clone());
    }
    left
}

#[test]
fn a_head_reads_column_by_column_what_it_reads_at_once() {
    for (name, count) in FOLDERS {
        let (model, heads) = load(&fixture(name));
        assert_eq!(heads.len(), count, "{name}");
        let given = model.hidden(&[&TEXT], &mut model.new_cache(1), &mut NoHook).unwrap();
        let mut before = given;
        for (head, whole) in all_states(&model, &heads).into_iter().enumerate() {
            let cache = &mut heads.new_caches()[head];
            for column in 0..whole.dim(1) {
                let states = before.index((.., column..=column, ..));
                let token = TEXT[column as usize + 1 + head];
                let left = heads.forward(head, &[token], &states, cache).unwrap();
                let same = near(&left, &whole.index((.., column..=column, ..)));
                assert!(same, "{name}, head {head}, column {column}");
            }
            before = whole;
        }
    }
}

/// A head attends to the columns before, and what was taken back leaves no trace.
#[test]
fn a_head_sees_its_past_and_goes_back() {
    let (model, heads) = load(&fixture("mtp-glm4-moe"));
    let states = model.hidden(&[&TEXT], &mut model.new_cache(1), &mut NoHook).unwrap();
    let of = |from: i32, to: i32| states.index((.., from..to, ..));
    let mut cache = heads.new_caches().remove(0);
    heads.forward(0, &TEXT[1..5], &of(0, 4), &mut cache).unwrap();
    let first = heads.forward(0, &TEXT[5..7], &of(4, 6), &mut cache).unwrap();
    cache.trim(2).unwrap();
    heads.forward(0, &[3, 4, 5], &of(6, 9), &mut cache).unwrap();
    cache.trim(3).unwrap();
    let again = heads.forward(0, &TEXT[5..7], &of(4, 6), &mut cache).unwrap();
    assert!(near(&first, &again));
    let alone = heads.forward(0, &TEXT[5..7], &of(4, 6), &mut heads.new_caches()[0]).unwrap();
    assert!(!near(&first, &alone));
}

#[test]
fn heads_are_found_beside_the_language_model_of_a_multimodal_folder() {
    let (model, heads) = load(&fixture("mtp-qwen3_5"));
    let plain = all_states(&model, &heads);
    let wrap = |config: &mut Value| {
        *config = json!({"model_type": "qwen3_5", "text_config": config.take()});
    };
    for (body, head, mtp) in [
        ("model.language_model.", "lm_head.", "mtp."),
        ("language_model.model.", "language_model.lm_head.", "language_model.mtp."),
    ] {
        let rename = |name: &str| {
            let of = |from, to: &str| name.strip_prefix(from).map(|it| format!("{to}{it}"));
            let renamed = of("model.", body).or_else(|| of("lm_head.", head));
            renamed.or_else(|| of("mtp.", mtp)).unwrap()
        };
        let folder = edited("mtp-qwen3_5", rename, wrap);
        let (model, heads) = load(folder.path());
        assert!(near(&all_states(&model, &heads)[0], &plain[0]), "{mtp}");
    }
}

#[test]
fn folders_without_heads_have_none() {
    // Of a kind without heads, and of kinds whose folders may have some.
    for name in ["llama", "glm4-moe", "mellum", "qwen3-next"] {
        let folder = fixture("../models").join(name);
        let model = Decoder::load(&folder, ComputeDtype::Float32).unwrap();
        assert!(MtpHeads::load(&folder, &model).unwrap().is_none(), "{name}");
    }
}

#[test]
fn what_is_wrong_with_a_head_is_said_by_tensor() {
    let moved = |from: &'static str, to: &'static str| {
        move |name: &str| if name == from { to } else { name }.to_owned()
    };
    let check = |folder: &tempfile::TempDir, words: &str| {
        let model = Decoder::load(folder.path(), ComputeDtype::Float32).unwrap();
        let error = MtpHeads::load(folder.path(), &model).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let other = edited("mtp-mellum", moved("mtp.fc.weight", "mtp.fd.weight"), |_| {});
    check(&other, "the tensor `mtp.fc.weight` is missing");
    let at = "mtp.layers.0.input_layernorm.weight";
    let other = edited("mtp-mellum", moved(at, "mtp.layers.0.extra.weight"), |_| {});
    check(&other, "the tensor `mtp.layers.0.input_layernorm.weight` is missing");
    let at = "model.layers.3.eh_proj.weight";
    let other = edited("mtp-glm4-moe", moved(at, "model.layers.3.other.weight"), |_| {});
    check(&other, "the tensor `model.layers.3.eh_proj.weight` is missing");
    let at = "mtp.layers.0.self_attn.q_norm.weight";
    let other = edited("mtp-qwen3_5", moved(at, "mtp.layers.1.q_norm.weight"), |_| {});
    check(&other, "has several layers under `mtp.layers`");
}

#[test]
fn a_config_that_promises_more_heads_than_there_are_gets_those_that_are() {
    let other = edited("mtp-glm4-moe", str::to_owned, |it| {
        it["num_nextn_predict_layers"] = json!(i32::MAX);
    });
    assert_eq!(load(other.path()).1.len(), 2);
}

#[test]
fn shapes_and_tokens_that_do_not_fit_are_refused() {
    let (model, heads) = load(&fixture("mtp-mellum"));
    let states = model.hidden(&[&TEXT], &mut model.new_cache(1), &mut NoHook).unwrap();
    let mut cache = heads.new_caches().remove(0);
    let mut refused = |head, tokens: &[u32], words: &str| {
        let error = heads.forward(head, tokens, &states, &mut cache).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(1, &TEXT, "head 1 of a model with 1");
    refused(0, &TEXT[1..], "states of shape [1, 12, 16], not [1, 11, 16]");
    refused(0, &[67; 12], "token id 67 is outside the vocabulary of 67");
    assert!(cache.is_empty());
}
