//! Finding, checking and opening a folder's safetensors.
//!
//! Headers are checked here before MLX opens a file, because MLX reads a tensor's bytes only when it
//! is evaluated, and a truncated file would surface then as a C++ message. The bytes themselves are
//! read once, straight into the array's own memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use mlx_rs::Array;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use crate::{
    Error, ErrorKind, Result,
    config::Config,
    input::{quoted, regular_file, shortened},
};

/// Tensors by name, not yet read.
pub(crate) type Tensors = HashMap<String, Array>;

/// The dtypes of weights, and of what quantized ones come with. MLX has no type of eight-bit floats, and
/// reads them as bytes.
const KNOWN: [Dtype; 8] = [
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::F8_E4M3,
    Dtype::U32,
    Dtype::U8,
    Dtype::I32,
    Dtype::I64,
];

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The longest header that is read, as in the `safetensors` crate: 100 MB.
const MAX_HEADER: u64 = 100_000_000;

/// The most tensors of one file: mixtures with hundreds of experts have a tenth of it in each of theirs.
const MAX_TENSORS: usize = 100_000;

/// Opens every tensor of a model folder: as in HF, a whole file before an index of parts.
pub(crate) fn open(folder: &Path) -> Result<Tensors> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    if single.exists() {
        return open_file(&single);
    }
    let mut tensors = Tensors::new();
    if !index.exists() {
        for file in weight_files(folder)? {
            tensors.extend(open_file(&file)?);
        }
        return Ok(tensors);
    }
    let listed = read_index(&index)?;
    let files: BTreeSet<&String> = listed.values().collect();
    for file in files {
        tensors.extend(open_file(&folder.join(file))?);
    }
    match listed.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        None => Ok(tensors),
        Some((name, file)) => {
            let (name, file) = (quoted(name), shortened(file));
            Err(damaged(&index, format!("lists {name} in {file}, which does not hold it")))
        }
    }
}

/// How many numbers the tensors hold at most, packed ones included.
pub(crate) fn numbers(tensors: &Tensors) -> usize {
    // The narrowest packed weights have two bits.
    let count = |it: &Array| if it.dtype().is_float() { it.size() } else { it.size() * 16 };
    tensors.values().map(count).sum()
}

/// Where a checkpoint keeps the language model.
///
/// A plain one has it under `model.`, what `AutoModel` saved (without a head) under no prefix, and a
/// multimodal one under `language_model.model.` or, from transformers 5 on, `model.language_model.`
/// (`language_model.` where `AutoModel` saved it). Nemotron-H has it under `backbone.`, with another name
/// for the token table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Naming {
    /// Stands for `model.`.
    body: &'static str,
    /// Stands for `lm_head.`.
    head: &'static str,
    /// Stands for `embed_tokens`.
    table: &'static str,
}

const NAMINGS: [Naming; 7] = [
    Naming { body: "model.", ..USUAL },
    Naming { body: "language_model.model.", head: "language_model.lm_head.", ..USUAL },
    Naming { body: "model.language_model.", ..USUAL },
    Naming { body: "language_model.", ..USUAL },
    Naming { body: "backbone.", table: "embeddings", ..USUAL },
    Naming { body: "model.", table: "embeddings", ..USUAL },
    Naming { body: "", ..USUAL },
];

const USUAL: Naming = Naming { body: "model.", head: "lm_head.", table: "embed_tokens" };

/// Tensors of a multimodal checkpoint that the language model does not need.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/muse-glimmer");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// // A model of text and images, of which the language model is loaded.
/// for part in model.skipped() {
///     println!("{}: {} tensors are not loaded", part.part, part.tensors);
/// }
/// assert!(model.skipped().iter().any(|it| it.part.contains("vision")));
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// The part they belong to, by the beginning of their names: `vision_tower`.
    pub part: String,
    /// How many there are.
    pub tensors: usize,
}

impl Naming {
    /// Recognised by where the token table is.
    pub(crate) fn of(tensors: &Tensors) -> Self {
        let is_there =
            |it: &&Self| tensors.contains_key(&format!("{}{}.weight", it.body, it.table));
        *NAMINGS.iter().find(is_there).unwrap_or(&NAMINGS[0])
    }

    /// A tensor's name in the file.
    pub(crate) fn in_file(self, plain: &str) -> String {
        let Self { body, head, table } = self;
        let of_table = plain.strip_prefix("model.embed_tokens.");
        let inner = of_table.map(|it| format!("{body}{table}.{it}"));
        let inner = inner.or_else(|| plain.strip_prefix("model.").map(|it| format!("{body}{it}")));
        let inner =
            inner.or_else(|| plain.strip_prefix("lm_head.").map(|it| format!("{head}{it}")));
        inner.unwrap_or_else(|| plain.to_owned())
    }

    /// Its name in a plain text model; `None` where it belongs to another part.
    fn plain(self, in_file: &str) -> Option<String> {
        let head = in_file.strip_prefix(self.head).map(|it| format!("lm_head.{it}"));
        head.or_else(|| {
            let inner = in_file.strip_prefix(self.body)?;
            let of_table = inner.strip_prefix(self.table).filter(|it| it.starts_with('.'));
            Some(of_table.map_or(format!("model.{inner}"), |it| format!("model.embed_tokens{it}")))
        })
    }

    /// Heads for predicting further tokens that are beside the language model, as a plain text model has them:
    /// under `mtp.`. They lie beside its body or, in mlx-vlm's layout, beside it in the same part.
    pub(crate) fn heads(self, tensors: &Tensors) -> Tensors {
        let plain = |name: &str| {
            let inner = name.strip_prefix("language_model.").unwrap_or(name);
            inner.starts_with("mtp.").then(|| inner.to_owned())
        };
        let found = tensors.iter().filter(|(name, _)| self.plain(name).is_none());
        found.filter_map(|(name, it)| Some((plain(name)?, it.clone()))).collect()
    }

    /// The tensors under the names of a plain text model. Of a multimodal checkpoint the rest is left
    /// out and named; in any other it stays under its own names, for the loader to refuse.
    pub(crate) fn language_model(
        self,
        tensors: Tensors,
        is_multimodal: bool,
    ) -> (Tensors, Vec<Skipped>) {
        let mut skipped = BTreeMap::<String, usize>::new();
        let mut kept = Tensors::new();
        for (name, tensor) in tensors {
            match self.plain(&name) {
                Some(plain) => _ = kept.insert(plain, tensor),
                None if is_multimodal => {
                    let inner = name.strip_prefix("model.").unwrap_or(&name);
                    let first = inner.split('.').next().unwrap_or_default();
                    let part = &name[..name.len() - inner.len() + first.len()];
                    *skipped.entry(shortened(part)).or_default() += 1;
                }
                None => _ = kept.insert(name, tensor),
            }
        }
        let skipped = skipped.into_iter().map(|(part, tensors)| Skipped { part, tensors });
        (kept, skipped.collect())
    }
}

/// Copies every tensor out of a safetensors file held in memory.
pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Tensors> {
    let path = Path::new(name);
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        damaged(path, format!("is not a safetensors file: {}", shortened(&e.to_string())))
    })?;
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
                Dtype::U8 | Dtype::F8_E4M3 => Array::from_slice(data, &shape),
                Dtype::I32 => Array::from_slice(&elements(data, i32::from_le_bytes), &shape),
                Dtype::I64 => Array::from_slice(&elements(data, i64::from_le_bytes), &shape),
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

/// Weights under another name than HF's, `model*.safetensors`, as some programs write them.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| {
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
    let actual = regular_file(path)?;
    let mut file = File::open(path).map_err(unreadable)?;
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
                "is truncated or not a safetensors file: its header claims {header} bytes of {actual}"
            ),
        ));
    }
    if header > MAX_HEADER {
        let what = format!("is not a safetensors file: its header claims {header} bytes");
        return Err(damaged(path, what));
    }
    let mut bytes = vec![0; header as usize];
    file.read_exact(&mut bytes).map_err(unreadable)?;
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|e| {
        damaged(path, format!("has a corrupt header: {}", shortened(&e.to_string())))
    })?;
    let expected = (8 + header).saturating_add(metadata.data_len() as u64);
    if expected != actual {
        return Err(damaged(
            path,
            format!("is damaged: its header describes {expected} bytes, the file has {actual}"),
        ));
    }
    let tensors = metadata.tensors();
    if tensors.len() > MAX_TENSORS {
        let (found, most) = (tensors.len(), MAX_TENSORS);
        let what = format!("holds {found} tensors, and at most {most} of one file are read");
        return Err(damaged(path, what));
    }
    for (name, info) in tensors {
        // Whole numbers are what other packers keep beside a weight, never the weight itself.
        let is_whole = matches!(info.dtype, Dtype::I32 | Dtype::I64);
        let is_plain = name.ends_with(".weight") || name.ends_with(".bias");
        if !KNOWN.contains(&info.dtype) || (is_whole && is_plain) {
            return Err(unsupported(path, &name, info.dtype));
        }
        if info.shape.iter().any(|&it| i32::try_from(it).is_err()) {
            let (name, shape) = (quoted(&name), format!("{:?}", info.shape));
            let what =
                format!("holds {name} with shape {}, which MLX cannot hold", shortened(&shape));
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
        format!(
            "holds {} as {dtype:?}; weights must be F32, F16, BF16 or F8_E4M3, or packed in U32, I32 or U8",
            quoted(tensor)
        ),
    )
}
