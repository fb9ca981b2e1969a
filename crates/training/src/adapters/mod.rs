//! Low-rank adapters: LoRA, rsLoRA and DoRA on a model's products, dense or packed, in the files of PEFT
//! and of mlx-lm.

mod experts;
mod lora;
mod merge;
mod mlx_lm;
mod peft;

use std::{collections::BTreeMap, fs, path::Path};

use mlx_rs::Array;
use mlxgk_mlx_models::{Adapter, Decoder};
use serde_json::Value;

pub use self::lora::{LoraConfig, attach_lora};
pub use self::merge::{Merged, merge_adapters, merge_folder};

use crate::{Error, ErrorKind, Result, files, files::failed};

/// The files that an adapter is written as.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_training::{AdapterFormat, LoraConfig, attach_lora, load_adapter, save_adapter};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let adapted = attach_lora(&mut model, &LoraConfig::default())?.len();
/// for format in [AdapterFormat::Peft, AdapterFormat::MlxLm] {
///     let adapter = tempfile::tempdir()?;
///     save_adapter(&model, adapter.path(), format, "./llama")?;
///     // Which of the two it is, loading finds out by itself.
///     assert_eq!(load_adapter(&mut model, adapter.path())?, adapted);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AdapterFormat {
    /// `adapter_model.safetensors` and `adapter_config.json`.
    #[default]
    Peft,
    /// `adapters.safetensors` and `adapter_config.json`.
    MlxLm,
}

/// The arrays of one product's adapter, in PEFT's shapes.
#[derive(Debug, Default)]
struct Parts {
    /// `[rank, in]`; of experts `[experts, rank, in]`.
    a: Option<Array>,
    /// `[out, rank]`; of experts `[experts, out, rank]`.
    b: Option<Array>,
    /// `[out]`.
    magnitude: Option<Array>,
}

/// Loads the adapter in a folder, of PEFT or of mlx-lm, and sets it on the model, in place of those that
/// were set on the same products. Returns how many products it is for.
///
/// # Errors
/// When a file is missing or damaged, the adapter is of a kind that is not supported, or it is for another
/// model; the message names the file or tensor. The model is then as it was.
pub fn load_adapter(decoder: &mut Decoder, folder: impl AsRef<Path>) -> Result<usize> {
    let adapters = read_fitting(decoder, folder.as_ref())?;
    set(decoder, adapters)
}

/// As [`load_adapter`], but where the same products have adapters already, the sum of both is set: what
/// each adds to the weights is added.
///
/// # Errors
/// As [`load_adapter`], and when one of two adapters of a product is DoRA, which is not a sum.
pub fn add_adapter(decoder: &mut Decoder, folder: impl AsRef<Path>) -> Result<usize> {
    let folder = folder.as_ref();
    let mut adapters = read_fitting(decoder, folder)?;
    for (path, adapter) in &mut adapters {
        let before = decoder.products().into_iter().find(|it| it.path() == path);
        if let Some(before) = before.and_then(|it| it.adapter()) {
            let about = |e| failed(folder, format_args!("`{path}`: {e}"));
            *adapter = before.plus(adapter).map_err(about)?;
        }
    }
    set(decoder, adapters)
}

/// Loads the adapter in a folder beside others, for rows that choose it by `name`
/// ([`Decoder::add_named_adapter`]). Returns how many products it is for.
///
/// # Errors
/// As [`load_adapter`], and when the name is taken, or the adapter is DoRA or for a product outside the
/// blocks.
pub fn load_named_adapter(
    decoder: &mut Decoder,
    name: &str,
    folder: impl AsRef<Path>,
) -> Result<usize> {
    let adapters = read_fitting(decoder, folder.as_ref())?;
    let count = adapters.len();
    decoder.add_named_adapter(name, adapters)?;
    Ok(count)
}

/// The adapters in a folder, all of which fit products of the model.
fn read_fitting(decoder: &Decoder, folder: &Path) -> Result<Vec<(String, Adapter)>> {
    let adapters = read(decoder, folder).map_err(Error::of_adapter)?;
    for (path, adapter) in &adapters {
        let wrong = |what: String| {
            let folder = folder.display();
            Error::new(ErrorKind::Adapter, format!("{folder} is for another model: {what}"))
        };
        let Some(product) = decoder.products().into_iter().find(|it| it.path() == path) else {
            return Err(wrong(format!("there is no `{path}`")));
        };
        let (fits, found) = (product.shape(), adapter.shape());
        if found != fits {
            return Err(wrong(format!("`{path}` is {fits:?}, and the adapter for {found:?}")));
        }
    }
    Ok(adapters)
}

/// The adapters in a folder of either format.
fn read(decoder: &Decoder, folder: &Path) -> Result<Vec<(String, Adapter)>> {
    let config = read_config(folder)?;
    if config.get("peft_type").is_some() {
        peft::read(decoder, folder, &config)
    } else if config.get("fine_tune_type").is_some() || config.get("lora_parameters").is_some() {
        mlx_lm::read(folder, &config)
    } else {
        let what = "names neither a peft_type nor a fine_tune_type";
        Err(failed(&folder.join(CONFIG), what))
    }
}

fn set(decoder: &mut Decoder, adapters: Vec<(String, Adapter)>) -> Result<usize> {
    let count = adapters.len();
    for (path, adapter) in adapters {
        if let Some(product) = decoder.product_mut(&path) {
            product.set_adapter(adapter)?;
        }
    }
    Ok(count)
}

/// Writes the adapters that are set on a model. `base` is the name of the model without them.
///
/// # Errors
/// When there is none, the format cannot hold them, or a file cannot be written.
pub fn save_adapter(
    decoder: &Decoder,
    folder: impl AsRef<Path>,
    format: AdapterFormat,
    base: &str,
) -> Result<()> {
    let folder = folder.as_ref();
    let adapters: Vec<(&str, &Adapter)> = decoder
        .products()
        .into_iter()
        .filter_map(|it| it.adapter().map(|adapter| (it.path(), adapter)))
        .collect();
    if adapters.is_empty() {
        return Err(Error::new(ErrorKind::Adapter, "the model has no adapter to be saved"));
    }
    let (name, tensors, config) = match format {
        AdapterFormat::Peft => peft::write(decoder, &adapters, base)?,
        AdapterFormat::MlxLm => mlx_lm::write(decoder, &adapters)?,
    };
    fs::create_dir_all(folder).map_err(|e| failed(folder, format_args!("cannot be made: {e}")))?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    files::write(&folder.join(name), &tensors, metadata)?;
    write_config(folder, &config)
}

/// Takes every adapter off; returns how many there were.
pub fn clear_adapters(decoder: &mut Decoder) -> usize {
    let adapted: Vec<String> = decoder
        .products()
        .into_iter()
        .filter(|it| it.adapter().is_some())
        .map(|it| it.path().to_owned())
        .collect();
    for path in &adapted {
        if let Some(product) = decoder.product_mut(path) {
            product.clear_adapter();
        }
    }
    adapted.len()
}

const CONFIG: &str = "adapter_config.json";

/// The longest file of adapters: those of rank 256 on a model of 70 billion parameters take 3 GB in bf16.
pub(crate) const LONGEST: u64 = 4 << 30;

/// The longest `adapter_config.json`.
const LONGEST_CONFIG: u64 = 16 << 20;

pub(crate) fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join(CONFIG);
    let bytes = mlxgk_steering::read_file(&path, LONGEST_CONFIG)
        .map_err(|e| failed(&path, format_args!("cannot be read: {e}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| failed(&path, format_args!("is not valid JSON: {e}")))
}

pub(crate) fn write_config(folder: &Path, config: &Value) -> Result<()> {
    let path = folder.join(CONFIG);
    let text = serde_json::to_string_pretty(config).map_err(|e| failed(&path, e))?;
    files::write_bytes(&path, format!("{text}\n").as_bytes())
}

/// The parts of each product's adapter as adapters, in the order of their paths.
fn assemble(
    file: &Path,
    parts: BTreeMap<String, Parts>,
    scale: impl Fn(&str, usize) -> f32,
) -> Result<Vec<(String, Adapter)>> {
    let mut adapters = Vec::with_capacity(parts.len());
    for (path, parts) in parts {
        let (Some(a), Some(b)) = (parts.a, parts.b) else {
            return Err(failed(file, format_args!("holds one of two matrices only for `{path}`")));
        };
        let about = |e| failed(file, format_args!("`{path}`: {e}"));
        let rank = if a.ndim() < 2 { 0 } else { a.dim(-2) as usize };
        let adapter = Adapter::new(a, b, scale(&path, rank)).map_err(about)?;
        let adapter = match parts.magnitude {
            Some(magnitude) => adapter.with_magnitude(magnitude).map_err(about)?,
            None => adapter,
        };
        adapters.push((path, adapter));
    }
    Ok(adapters)
}

/// A matrix, transposed.
fn transposed(file: &Path, name: &str, array: &Array) -> Result<Array> {
    if array.ndim() != 2 {
        return Err(failed(file, format_args!("`{name}` is {:?}, not a matrix", array.shape())));
    }
    Ok(array.t().contiguous()?)
}
