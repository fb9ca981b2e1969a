//! Finding, checking and opening a folder's safetensors.
//!
//! Headers are checked here before MLX opens a file, because MLX reads a tensor's bytes only when it
//! is evaluated, and a truncated file would surface then as a C++ message. The bytes themselves are
//! read once, straight into the array's own memory.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use mlx_rs::Array;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use crate::{Error, ErrorKind, Result, config::Config};

/// Tensors by name, not yet read.
pub(crate) type Tensors = HashMap<String, Array>;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The longest header that is read, as in the `safetensors` crate: 100 MB.
const MAX_HEADER: u64 = 100_000_000;

/// Opens every tensor of a model folder.
pub(crate) fn open(folder: &Path) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    let index = folder.join(INDEX);
    if index.is_file() {
        let listed = read_index(&index)?;
        let files: BTreeSet<&String> = listed.values().collect();
        for file in files {
            tensors.extend(open_file(&folder.join(file))?);
        }
        if let Some((name, file)) = listed.iter().find(|(name, _)| !tensors.contains_key(*name)) {
            return Err(damaged(
                &index,
                format!("lists `{name}` in {file}, which does not hold it"),
            ));
        }
    } else {
        for file in weight_files(folder)? {
            tensors.extend(open_file(&file)?);
        }
    }
    Ok(tensors)
}

/// The language model of a checkpoint that also sees or hears, under the names of one that does not.
///
/// Published files put it under `language_model.model.`, those of transformers 5 under
/// `model.language_model.`; whatever else is there belongs to the other senses.
pub(crate) fn language_model(tensors: Tensors) -> Tensors {
    let plain = |name: &str| {
        let inner = name.strip_prefix("model.language_model.").map(|it| format!("model.{it}"));
        let inner = inner.or_else(|| name.strip_prefix("language_model.").map(str::to_owned));
        inner.or_else(|| name.starts_with("lm_head.").then(|| name.to_owned()))
    };
    tensors.into_iter().filter_map(|(name, tensor)| Some((plain(&name)?, tensor))).collect()
}

/// Copies every tensor out of a safetensors file held in memory.
pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Tensors> {
    let path = Path::new(name);
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| damaged(path, format!("is not a safetensors file: {e}")))?;
    file.tensors()
        .into_iter()
        .map(|(tensor, view)| {
            let shape: Vec<i32> = view.shape().iter().map(|&it| it as i32).collect();
            let data = view.data();
            let array = match view.dtype() {
                Dtype::F32 => Array::from_slice(&elements(data, f32::from_le_bytes), &shape),
                Dtype::F16 => Array::from_slice(&elements(data, f16::from_le_bytes), &shape),
                Dtype::BF16 => Array::from_slice(&elements(data, bf16::from_le_bytes), &shape),
                Dtype::U32 => Array::from_slice(&elements(data, u32::from_le_bytes), &shape),
                other => return Err(unsupported(path, &tensor, other)),
            };
            Ok((tensor, array))
        })
        .collect()
}

fn elements<T, const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|&it| read(it)).collect()
}

fn read_index(path: &Path) -> Result<HashMap<String, String>> {
    // The index is read as a config is, but belongs to the weights.
    let of_weights = |e: Error| match e.kind() {
        ErrorKind::Config => Error::new(ErrorKind::Weights, e.to_string()),
        _ => e,
    };
    let map = Config::read(path)
        .and_then(|index| index.require("weight_map", Config::object))
        .map_err(of_weights)?;
    map.entries()
        .map(|(tensor, file)| match file.as_str() {
            // A shard lies beside its index; anything else is a path out of the model folder.
            Some(file) if Path::new(file).file_name().is_some_and(|it| it == file) => {
                Ok((tensor.clone(), file.to_owned()))
            }
            _ => Err(of_weights(map.error(tensor, "must name a file in the same folder"))),
        })
        .collect()
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let entries = std::fs::read_dir(folder).map_err(|e| {
        Error::new(ErrorKind::File, format!("cannot read the folder {}: {e}", folder.display()))
    })?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
            name.starts_with("model") && name.ends_with(".safetensors")
        })
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(Error::new(
            ErrorKind::File,
            format!("{} holds no weights: neither {SINGLE} nor {INDEX}", folder.display()),
        ));
    }
    Ok(files)
}

fn open_file(path: &Path) -> Result<Tensors> {
    check_header(path)?;
    Array::load_safetensors(path).map_err(|e| damaged(path, format!("cannot be opened: {e}")))
}

/// Checks that the header parses, that the file is as long as the header says, and that MLX knows
/// every dtype and can hold every shape.
fn check_header(path: &Path) -> Result<()> {
    let unreadable = |e: std::io::Error| {
        Error::new(ErrorKind::File, format!("cannot read {}: {e}", path.display()))
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let actual = file.metadata().map_err(unreadable)?.len();
    let mut length = [0; 8];
    if actual < 8 {
        return Err(damaged(path, format!("is truncated: it has {actual} bytes")));
    }
    file.read_exact(&mut length).map_err(unreadable)?;
    // A checkout without `git lfs` leaves a three-line pointer where the file should be.
    if length == *b"version " {
        let what = "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder";
        return Err(damaged(path, what));
    }
    let header = u64::from_le_bytes(length);
    if header.checked_add(8).is_none_or(|it| it > actual) {
        return Err(damaged(
            path,
            format!(
                "is truncated or no safetensors file: its header claims {header} bytes of {actual}"
            ),
        ));
    }
    if header > MAX_HEADER {
        let what = format!("is no safetensors file: its header claims {header} bytes");
        return Err(damaged(path, what));
    }
    let mut bytes = vec![0; header as usize];
    file.read_exact(&mut bytes).map_err(unreadable)?;
    let metadata: Metadata = serde_json::from_slice(&bytes)
        .map_err(|e| damaged(path, format!("has a corrupt header: {e}")))?;
    let expected = 8 + header + metadata.data_len() as u64;
    if expected != actual {
        return Err(damaged(
            path,
            format!("is damaged: its header describes {expected} bytes, the file has {actual}"),
        ));
    }
    for (name, info) in metadata.tensors() {
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::U32) {
            return Err(unsupported(path, &name, info.dtype));
        }
        if info.shape.iter().any(|&it| i32::try_from(it).is_err()) {
            let what = format!("holds `{name}` with shape {:?}, which MLX cannot hold", info.shape);
            return Err(damaged(path, what));
        }
    }
    Ok(())
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Weights, format!("{} {what}", path.display()))
}

fn unsupported(path: &Path, tensor: &str, dtype: Dtype) -> Error {
    damaged(
        path,
        format!("holds `{tensor}` as {dtype:?}; weights must be F32, F16, BF16 or packed U32"),
    )
}
