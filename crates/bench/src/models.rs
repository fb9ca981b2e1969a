//! The model folders that are measured, and how they come about.
//!
//! The large ones are shapes filled with noise, written once instead of downloaded. No model ever ends a
//! text: every system then makes the number of tokens it is asked for.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use mlxgk_torch::SplitMix64;
use serde_json::{Map, Value, json};

use crate::{Result, shapes::Shape};

/// The name of the folder of Qwen3-0.6B's shape.
pub(crate) const DENSE: &str = "qwen3-0.6b-shape";

/// Where the benches keep their models: the folder `build/bench` of the checkout, which git ignores.
pub fn default_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/bench")
}

/// The folder of the random model of Qwen3-0.6B's shape, which is written first where it is missing
/// (1.2 GB).
///
/// # Errors
/// When it cannot be written.
pub fn random_qwen3(folder: &Path) -> Result<PathBuf> {
    random(folder, DENSE, &Shape::dense())
}

/// The folder of a random model of a shape under a name, which is written first where it is missing.
///
/// # Errors
/// When it cannot be written.
pub fn random(folder: &Path, name: &str, shape: &Shape) -> Result<PathBuf> {
    let model = folder.join(name);
    if !model.is_dir() {
        write_random(&model, shape)?;
    }
    Ok(model)
}

/// Writes a folder with the bundled model, less its end tokens and with room for long texts.
///
/// # Errors
/// When it cannot be written.
pub fn endless_bundled(folder: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mlx-genkit/bundled");
    let model = folder.join("bundled");
    fs::create_dir_all(&model)?;
    for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(source.join(name), model.join(name))?;
    }
    let mut config: Map<String, Value> =
        serde_json::from_slice(&fs::read(source.join("config.json"))?)?;
    config.remove("eos_token_id");
    config.insert("max_position_embeddings".into(), 16_384.into());
    write_json(&model.join("config.json"), &config.into())?;
    write_json(&model.join("generation_config.json"), &json!({}))?;
    Ok(model)
}

/// Writes a model folder of the given shape in bf16, with noise drawn evenly from ±0.035: a deviation of
/// 0.02, HF's `initializer_range`.
///
/// # Errors
/// When it cannot be written.
pub fn write_random(folder: &Path, shape: &Shape) -> Result<()> {
    let mut header = Map::new();
    let mut offset = 0;
    for tensor in &shape.tensors {
        let end = offset + 2 * tensor.count();
        let entry = json!({"dtype": "BF16", "shape": tensor.sizes, "data_offsets": [offset, end]});
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let header = serde_json::to_vec(&header)?;

    // Under another name until it is whole: an interrupted run leaves nothing that looks like a model.
    let partial = folder.with_extension("tmp");
    fs::create_dir_all(&partial)?;
    let mut file =
        BufWriter::with_capacity(1 << 20, File::create(partial.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut noise = Noise(SplitMix64::new(0));
    for tensor in &shape.tensors {
        match tensor.value {
            Some(value) => {
                let bits = (value.to_bits() >> 16) as u16;
                file.write_all(&bits.to_le_bytes().repeat(tensor.count()))?;
            }
            None => noise.write(&mut file, tensor.count())?,
        }
    }
    file.into_inner()?.sync_all()?;
    write_json(&partial.join("config.json"), &shape.config)?;
    write_json(&partial.join("generation_config.json"), &json!({}))?;
    Ok(fs::rename(partial, folder)?)
}

/// Weights of noise: four bf16 values per draw, so that the disk is what takes the time.
struct Noise(SplitMix64);

impl Noise {
    fn write(&mut self, file: &mut impl Write, count: usize) -> Result<()> {
        const BOUND: f32 = 0.035;
        for start in (0..count).step_by(4) {
            let bits = self.0.next_u64();
            let mut bytes = [0; 8];
            for (lane, pair) in bytes.chunks_exact_mut(2).enumerate() {
                let value = f32::from((bits >> (16 * lane)) as i16) * (BOUND / 32_768.0);
                pair.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
            }
            file.write_all(&bytes[..2 * (count - start).min(4)])?;
        }
        Ok(())
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(fs::write(path, serde_json::to_vec_pretty(value)?)?)
}

#[cfg(test)]
mod tests {
    use mlx_genkit::{ComputeDtype, Model};

    use super::*;

    #[test]
    fn the_bundled_model_is_kept_from_ending() {
        let folder = tempfile::tempdir().unwrap();
        let model =
            Model::load(endless_bundled(folder.path()).unwrap(), ComputeDtype::Float32).unwrap();
        assert!(model.generation_config().eos_token_id.is_none());
    }
}
