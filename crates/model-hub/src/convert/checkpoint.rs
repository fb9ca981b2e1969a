//! What a model folder holds: its config, and where in which file each tensor's bytes are.
//!
//! Only headers are read here. A tensor may be far larger than what may be held in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use mlxgk_generation_config::read_json;
use safetensors::{Dtype, tensor::Metadata};
use serde_json::{Map, Value};

use super::{derived::Derived, float::Float, settings::Scheme};
use crate::{
    Error, ErrorKind, Result,
    files::{INDEX, WHOLE, no_safetensors, read, regular},
};

/// The longest header that is read, as in the `safetensors` crate.
const MAX_HEADER: u64 = 100_000_000;

/// A JSON object.
pub(super) type Object = Map<String, Value>;

/// What the numbers of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Float(Float),
    /// Words that packed weights fill.
    U32,
    /// Scales of the modes that have a byte per group, and other programs' codes.
    U8,
    /// Other programs' floats of eight bits.
    E4m3,
    /// Other programs' words, and the order of their inputs.
    I32,
    /// The shapes that other programs keep beside what they packed.
    I64,
}

impl Element {
    /// The name in a safetensors header.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Float(Float::Float32) => "F32",
            Self::Float(Float::Float16) => "F16",
            Self::Float(Float::Bfloat16) => "BF16",
            Self::U32 => "U32",
            Self::U8 => "U8",
            Self::E4m3 => "F8_E4M3",
            Self::I32 => "I32",
            Self::I64 => "I64",
        }
    }

    pub(super) fn float(self) -> Option<Float> {
        match self {
            Self::Float(it) => Some(it),
            _ => None,
        }
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::Float(it) => it.size(),
            Self::U32 | Self::I32 => 4,
            Self::U8 | Self::E4m3 => 1,
            Self::I64 => 8,
        }
    }
}

/// A tensor, or a part of it, in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    /// The name in the file, for errors.
    pub(super) name: String,
    /// Which of [`Checkpoint::files`].
    pub(super) file: usize,
    /// The first byte: in the file, or of what is derived.
    pub(super) at: u64,
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    /// Of a part whose numbers are not side by side: how far it is to the next row and to the next
    /// column of its two axes.
    pub(super) steps: Option<[usize; 2]>,
    /// Where the numbers come from, if the file does not hold them as they are.
    pub(super) derived: Option<Arc<Derived>>,
}

impl Stored {
    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.count() * self.element.size()) as u64
    }
}

/// A folder's config and tensors.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) folder: PathBuf,
    /// The weight files.
    pub(super) files: Vec<PathBuf>,
    pub(super) config: Object,
    /// By their names in the file.
    pub(super) tensors: BTreeMap<String, Stored>,
    /// How modules are packed that another program than MLX packed, by their names in the file.
    pub(super) adopted: BTreeMap<String, Scheme>,
}

impl Checkpoint {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.exists() {
            let what = format!(
                "{} holds no config.json; a model is a folder with config.json and its weights as \
                 safetensors",
                folder.display()
            );
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let config = read_object(&path)?;
        let (files, listed) = weight_files(folder)?;
        if let Some((_, file)) = listed.iter().find(|it| !folder.join(it.1).exists()) {
            let what =
                format!("lists the file {file:?}, which is missing; download the folder again");
            return Err(damaged(&folder.join(INDEX), what));
        }
        let mut tensors = BTreeMap::new();
        for (file, path) in files.iter().enumerate() {
            tensors.extend(header(path, file)?.into_iter().map(|it| (it.name.clone(), it)));
        }
        if let Some((name, file)) = listed.iter().find(|(name, _)| !tensors.contains_key(*name)) {
            let what = format!("lists {name:?} in {file:?}, which does not hold it");
            return Err(damaged(&folder.join(INDEX), what));
        }
        let adopted = BTreeMap::new();
        Ok(Self { folder: folder.to_owned(), files, config, tensors, adopted })
    }

    /// A size of the language model.
    pub(super) fn size(&self, field: &str) -> Option<usize> {
        let inner = self.config.get("text_config").and_then(Value::as_object);
        let value = inner.unwrap_or(&self.config).get(field)?;
        value.as_u64().map(|it| it as usize)
    }

    /// The error about a field of the config.
    pub(super) fn config_error(&self, field: &str, what: impl std::fmt::Display) -> Error {
        let path = self.folder.join("config.json");
        Error::new(ErrorKind::Unsupported, format!("{}: `{field}` {what}", path.display()))
    }

    /// The error about a tensor.
    pub(super) fn error(&self, tensor: &Stored, what: impl std::fmt::Display) -> Error {
        damaged(&self.files[tensor.file], format!("holds {:?}, {what}", tensor.name))
    }
}

/// The weight files of a folder, as the loader takes them: a whole file, what an index lists, or
/// whatever is named `model*.safetensors`; and the file of each tensor in the index.
fn weight_files(folder: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, String>)> {
    let (whole, index) = (folder.join(WHOLE), folder.join(INDEX));
    if whole.exists() {
        return Ok((vec![whole], BTreeMap::new()));
    }
    if index.exists() {
        let mut listed = BTreeMap::new();
        let object = read_object(&index)?;
        let map = object.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| damaged(&index, "has no object `weight_map`"))?;
        for (tensor, file) in map {
            match file.as_str() {
                // A shard lies beside its index; anything else is a path out of the folder.
                Some(file) if Path::new(file).file_name().is_some_and(|it| it == file) => {
                    listed.insert(tensor.clone(), file.to_owned());
                }
                _ => {
                    let what = format!("names no file in the same folder for {tensor:?}");
                    return Err(damaged(&index, what));
                }
            }
        }
        let names: BTreeSet<&String> = listed.values().collect();
        return Ok((names.into_iter().map(|it| folder.join(it)).collect(), listed));
    }
    let (mut files, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(|e| Error::file("reading", folder, e))? {
        let path = entry.map_err(|e| Error::file("reading", folder, e))?.path();
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            files.push(path);
        } else {
            others.push(name.to_owned());
        }
    }
    files.sort();
    if files.is_empty() {
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        return Err(no_safetensors(&folder.display().to_string(), &others));
    }
    Ok((files, BTreeMap::new()))
}

/// A JSON file that holds an object; numbers that are not finite as transformers 5 writes them.
pub(super) fn read_object(path: &Path) -> Result<Object> {
    match read_json(&read(path)?) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(damaged(path, "is not a JSON object")),
        Err(e) => Err(damaged(path, e)),
    }
}

/// The tensors of a safetensors file, which has to be as long as its header says.
fn header(path: &Path, file: usize) -> Result<Vec<Stored>> {
    let failed = |e| Error::file("reading", path, e);
    let actual = regular(path)?;
    let mut input = File::open(path).map_err(failed)?;
    let mut length = [0; 8];
    if actual < 8 {
        return Err(damaged(path, format!("is truncated: it has {actual} bytes")));
    }
    input.read_exact(&mut length).map_err(failed)?;
    if length == *b"version " {
        let what = "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder";
        return Err(damaged(path, what));
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + 8 > actual {
        let what = format!(
            "is truncated or not a safetensors file: its header claims {length} bytes of {actual}"
        );
        return Err(damaged(path, what));
    }
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes).map_err(failed)?;
    let metadata: Metadata = serde_json::from_slice(&bytes)
        .map_err(|e| damaged(path, format!("has a corrupt header: {e}")))?;
    let begin = 8 + length;
    let expected = begin + metadata.data_len() as u64;
    if expected != actual {
        let what =
            format!("is damaged: its header describes {expected} bytes, the file has {actual}");
        return Err(damaged(path, what));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let element = match info.dtype {
            Dtype::F32 => Element::Float(Float::Float32),
            Dtype::F16 => Element::Float(Float::Float16),
            Dtype::BF16 => Element::Float(Float::Bfloat16),
            Dtype::U32 => Element::U32,
            Dtype::U8 => Element::U8,
            Dtype::F8_E4M3 => Element::E4m3,
            Dtype::I32 => Element::I32,
            Dtype::I64 => Element::I64,
            other => {
                return Err(unknown_dtype(path, &name, &format!("{other:?}")));
            }
        };
        let at = begin + info.data_offsets.0 as u64;
        Ok(Stored {
            name,
            file,
            at,
            element,
            shape: info.shape.clone(),
            steps: None,
            derived: None,
        })
    });
    tensors.collect()
}

/// The error about a tensor of a dtype that no model's weights have.
pub(super) fn unknown_dtype(path: &Path, name: &str, dtype: &str) -> Error {
    let what = format!(
        "{} holds {name:?} as {dtype}, which is not converted; expected one of F32, F16, BF16, and what \
         a quantization that config.json names keeps beside them",
        path.display()
    );
    Error::new(ErrorKind::Unsupported, what)
}

pub(super) fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("{} {what}", path.display()))
}
