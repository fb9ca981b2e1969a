//! From one model folder to another: Hugging Face's layout to MLX's and back, other dtypes, quantized
//! and dequantized.
//!
//! The result is what mlx-lm 0.32 writes: the same tensors under the same names, to the bit, and the
//! same entries in `config.json`. Tensors are streamed, so memory stays at some tens of megabytes
//! whatever the model's size.

mod arrange;
mod checkpoint;
mod complete;
mod derived;
mod factors;
mod families;
mod float;
mod folder;
mod foreign;
mod plan;
mod quantize;
mod settings;
mod steps;
mod stream;
mod write;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::{
    checkpoint::{Checkpoint, Object},
    folder::Place,
    plan::Plan,
};
pub use self::{
    float::Float,
    settings::{Conversion, Layout, Mode, Recipe, Rule, Scheme},
};
use crate::{Progress, Result};

/// What a conversion made.
///
/// ```
/// use std::path::Path;
///
/// use mlxgk_model_hub::{Conversion, Mode, NoProgress, Scheme, convert};
///
/// # let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama"));
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path().join("llama-4bit");
/// let to = Conversion::new().quantize(Scheme::new(Mode::Affine, Some(4), Some(32))?);
/// let made = convert(model, &out, &to, &mut NoProgress)?;
/// assert!(made.quantized > 0 && made.bits_per_weight() < 32.0);
/// // The same conversion is not done twice.
/// assert!(convert(model, &out, &to, &mut NoProgress)?.was_there);
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Converted {
    /// The folder.
    pub folder: PathBuf,
    /// Whether an earlier run had made it, from the same files with the same settings.
    pub was_there: bool,
    /// Numbers that the weights stand for.
    pub parameters: u64,
    /// Bytes of the weights, scales and biases among them.
    pub bytes: u64,
    /// How many modules are quantized.
    pub quantized: usize,
    /// Parts of a multimodal model that a text model does not have, with the number of their tensors.
    pub left_out: Vec<(String, usize)>,
}

impl Converted {
    /// Bits per weight, scales and biases among them, as mlx-lm counts.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters as f64
    }
}

/// Converts the model in the folder `model` into the new folder `out`.
///
/// `out` is complete or not there: files are written into a folder beside it, which is renamed at the
/// end. A run that was killed leaves that folder, and the next run starts over in it. Of two runs at
/// once one waits for the other. Where `out` was made from the same files with the same settings,
/// nothing is done.
///
/// ```
/// use std::path::Path;
///
/// use mlxgk_model_hub::{Conversion, Mode, NoProgress, Scheme, convert};
///
/// # let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama"));
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path().join("llama-4bit");
/// let to = Conversion::new().quantize(Scheme::new(Mode::Affine, Some(4), Some(32))?);
/// let made = convert(model, &out, &to, &mut NoProgress)?;
/// println!("{:.3} bits per weight", made.bits_per_weight());
/// assert!(out.join("config.json").is_file());
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
///
/// Which tensors a layer of the family has is known by its graph alone, and not asked here: a program with
/// MLX loads the folder first, without its numbers (`Decoder::load_lazily` in `mlxgk-mlx-models`), as `mlxgk
/// convert` does.
///
/// # Errors
/// When `model` holds no model of a known type, a file of it is damaged, the settings do not fit it,
/// `out` is there and was made otherwise, the disk has no room for it, or a file cannot be written.
pub fn convert(
    model: &Path,
    out: &Path,
    conversion: &Conversion,
    progress: &mut dyn Progress,
) -> Result<Converted> {
    let mut checkpoint = Checkpoint::open(model)?;
    foreign::adopt(&mut checkpoint)?;
    let plan = Plan::new(&checkpoint, conversion)?;
    let converted = |was_there, bytes| Converted {
        folder: out.to_owned(),
        was_there,
        parameters: plan.parameters,
        bytes,
        quantized: plan.quantized,
        left_out: plan.left_out.clone().into_iter().collect(),
    };
    let record = folder::record(&checkpoint, conversion)?;
    let bytes = plan.outputs().map(|it| it.bytes()).fold(0, u64::saturating_add);
    let Some(place) = Place::take(out, &record)? else {
        return Ok(converted(true, bytes));
    };
    place.check_room(bytes, model)?;
    let bytes = write::weights(
        &checkpoint,
        &plan,
        conversion.layout,
        conversion.shard_bytes,
        place.folder(),
        progress,
    )?;
    let config = config(&checkpoint, &plan, conversion)?;
    write::json_file(&place.folder().join("config.json"), &Value::Object(config))?;
    folder::carry_over(model, place.folder())?;
    place.finish()?;
    Ok(converted(false, bytes))
}

/// The config, with its fields in alphabetical order.
fn config(checkpoint: &Checkpoint, plan: &Plan, conversion: &Conversion) -> Result<Object> {
    let mut config = checkpoint.config.clone();
    for key in ["quantization", "quantization_config"] {
        config.remove(key);
        if let Some(quantization) = &plan.quantization {
            config.insert(key.to_owned(), Value::Object(quantization.clone()));
        }
    }
    if let Some(name) = plan.model_type {
        config.insert("model_type".to_owned(), json!(name));
    }
    // As mlx-lm reads and writes them.
    config.remove("_name_or_path");
    config.remove("vision_config");
    let generation = checkpoint.folder.join("generation_config.json");
    if generation.exists()
        && let Some(eos) = checkpoint::read_object(&generation)?.get("eos_token_id")
        && !eos.is_null()
    {
        config.insert("eos_token_id".to_owned(), eos.clone());
    }
    let inner = config.get("text_config").and_then(Value::as_object);
    if inner.is_none() && !config.contains_key("tie_word_embeddings") {
        config.insert("tie_word_embeddings".to_owned(), json!(plan.is_tied));
    }
    // mlx-lm leaves the old name, and would convert back by it.
    if let Some(dtype) = conversion.dtype {
        let name = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        for key in ["torch_dtype", "dtype"] {
            if key == name || config.contains_key(key) {
                config.insert(key.to_owned(), json!(dtype.as_str()));
            }
        }
        let inner = config.get_mut("text_config").and_then(Value::as_object_mut);
        for value in inner.into_iter().flat_map(|it| it.iter_mut()) {
            if matches!(value.0.as_str(), "torch_dtype" | "dtype") {
                *value.1 = json!(dtype.as_str());
            }
        }
    }
    config.sort_keys();
    Ok(config)
}
