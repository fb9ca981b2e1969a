//! Folders in which one tensor is wrong: missing, under another name, of another shape or dtype. For every
//! recorded model and each of its tensors, loading refuses the folder in a sentence that names it.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use mlxgk_mlx_models::{ComputeDtype, Decoder};
use serde_json::{Map, Value, json};

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
    let entries = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|it| it.is_dir()).collect();
    found.sort();
    assert!(found.len() > 90, "{}", found.len());
    found
}

/// A tensor's entry in a header, and its bytes.
#[derive(Clone)]
struct Stored {
    dtype: Value,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// All tensors of a folder.
fn read(folder: &Path) -> BTreeMap<String, Stored> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|it| it != "safetensors") {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        let begin = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..begin]).unwrap();
        for (name, about) in header.into_iter().filter(|it| it.0 != "__metadata__") {
            let at = |index: usize| begin + about["data_offsets"][index].as_u64().unwrap() as usize;
            let bytes = bytes[at(0)..at(1)].to_vec();
            let shape = serde_json::from_value(about["shape"].clone()).unwrap();
            found.insert(name, Stored { dtype: about["dtype"].clone(), shape, bytes });
        }
    }
    found
}

/// Writes tensors as the one weight file of a folder.
fn write(folder: &Path, tensors: &BTreeMap<String, Stored>) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, it) in tensors {
        let end = data.len() + it.bytes.len();
        let about =
            json!({"dtype": it.dtype, "shape": it.shape, "data_offsets": [data.len(), end]});
        header.insert(name.clone(), about);
        data.extend_from_slice(&it.bytes);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let all = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
    fs::write(folder.join("model.safetensors"), all).unwrap();
}

/// What is wrong with one tensor.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Missing,
    Renamed,
    Reshaped,
    Retyped,
}

impl Fault {
    /// The tensors with one of them changed.
    fn put(self, name: &str, mut all: BTreeMap<String, Stored>) -> BTreeMap<String, Stored> {
        let mut it = all.remove(name).unwrap();
        match self {
            Self::Missing => return all,
            Self::Renamed => {
                all.insert(format!("{name}_2"), it);
                return all;
            }
            Self::Reshaped => it.shape.insert(0, 1),
            Self::Retyped => {
                let size = it.bytes.len() as u64 / it.shape.iter().product::<u64>().max(1);
                let is_float = ["F32", "F16", "BF16"].contains(&it.dtype.as_str().unwrap());
                it.dtype = json!(match (size, is_float) {
                    (8, _) => "F64",
                    (4, true) => "U32",
                    (4, false) => "F32",
                    (2, _) => "I16",
                    _ => "I8",
                });
            }
        }
        all.insert(name.to_owned(), it);
        all
    }
}

/// What a folder may have otherwise: a head that repeats the token table, what other programs keep beside
/// a weight and products like ours do without, and parts that the language model does without.
fn is_free(config: &Value, sound: &Decoder, name: &str) -> bool {
    let tied = config["tie_word_embeddings"] == true && name.starts_with("lm_head.");
    let unused = [".g_idx", ".input_scale", ".k_scale", ".v_scale", ".weight_shape"];
    let skipped = || sound.skipped().iter().any(|it| name.starts_with(&format!("{}.", it.part)));
    tied || unused.iter().any(|it| name.ends_with(it)) || skipped()
}

/// Whether an error says which tensor is wrong: by its name; by its module's, where other programs have
/// several tensors for one; or by another name in the same layer, where layouts call it differently and
/// nothing else tells which layout a folder has. Without the token table nothing tells how a folder's names
/// begin, so any tensor may be the first that is missing.
fn names(error: &str, name: &str) -> bool {
    if ["embed_tokens.weight", "embeddings.weight"].iter().any(|it| name.ends_with(it)) {
        return error.contains("` is missing") || error.contains(&format!("`{name}`"));
    }
    let module = name.rsplit_once('.').map_or(name, |it| it.0);
    let layer = name.split_once(".layers.").and_then(|(at, rest)| {
        let (index, _) = rest.split_once('.')?;
        Some(format!("`{at}.layers.{index}."))
    });
    [format!("`{name}`"), format!("`{module}."), format!("`{module}`")]
        .into_iter()
        .chain(layer)
        .any(|it| error.contains(&it))
}

#[test]
fn each_tensor_that_is_wrong_is_named() {
    let (mut tried, mut accepted, mut unnamed) = (0, Vec::new(), Vec::new());
    for model in models() {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(&model).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|it| it == "json")
                && !path.to_string_lossy().ends_with(".index.json")
            {
                fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        let config = fs::read(model.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let all = read(&model);
        write(folder.path(), &all);
        let about = model.file_name().unwrap().to_string_lossy().into_owned();
        let sound = Decoder::load_lazily(folder.path(), ComputeDtype::Auto).unwrap();
        for (name, tensor) in &all {
            for fault in [Fault::Missing, Fault::Renamed, Fault::Reshaped, Fault::Retyped] {
                // One number is one number, in whatever shape.
                if matches!(fault, Fault::Reshaped) && tensor.shape.is_empty() {
                    continue;
                }
                write(folder.path(), &fault.put(name, all.clone()));
                tried += 1;
                match Decoder::load_lazily(folder.path(), ComputeDtype::Auto) {
                    Ok(_) if is_free(&config, &sound, name) => {}
                    Ok(_) => accepted.push(format!("{about}: {name} {fault:?}")),
                    Err(e) if names(&e.to_string(), name) => {}
                    Err(e) => unnamed.push(format!("{about}: {name} {fault:?}: {e}")),
                }
            }
        }
    }
    assert!(tried > 10_000, "{tried}");
    assert!(
        accepted.is_empty() && unnamed.is_empty(),
        "accepted: {accepted:#?}\nunnamed: {unnamed:#?}"
    );
}
