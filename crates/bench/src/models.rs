//! The model folders that are measured, and how they come about.
//!
//! Speed depends on a model's shape, not on what it has learned. So the large model is Qwen3-0.6B's
//! shape filled with noise, written once instead of downloaded, and neither model ever ends a text:
//! every system then makes the number of tokens it is asked for.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use mlxgk_torch::SplitMix64;
use serde_json::{Map, Value, json};

use crate::Result;

/// A Qwen3 decoder's sizes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width inside the feed-forward half.
    pub intermediate: usize,
    /// Tokens.
    pub vocab: usize,
}

/// Qwen3-0.6B: 596 million parameters, 2.4 GB in fp32.
pub const QWEN3_0_6B: Shape = Shape {
    hidden: 1024,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    intermediate: 3072,
    vocab: 151_936,
};

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
    let model = folder.join("qwen3-0.6b-shape");
    if !model.is_dir() {
        write_random(&model, &QWEN3_0_6B)?;
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

/// Writes a model folder of the given shape: bf16 weights drawn evenly from ±0.035 (a deviation of
/// 0.02, HF's `initializer_range`), norms of 1, the head tied to the embedding.
///
/// # Errors
/// When it cannot be written.
pub fn write_random(folder: &Path, shape: &Shape) -> Result<()> {
    let tensors = tensors(shape);
    let mut header = Map::new();
    let mut offset = 0;
    for (name, sizes) in &tensors {
        let end = offset + 2 * sizes.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": sizes, "data_offsets": [offset, end]});
        header.insert(name.clone(), entry);
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
    for (name, sizes) in &tensors {
        let count = sizes.iter().product();
        if name.ends_with("norm.weight") {
            let one = (1.0_f32.to_bits() >> 16) as u16;
            file.write_all(&one.to_le_bytes().repeat(count))?;
        } else {
            noise.write(&mut file, count)?;
        }
    }
    file.into_inner()?.sync_all()?;
    write_json(&partial.join("config.json"), &config(shape))?;
    write_json(&partial.join("generation_config.json"), &json!({}))?;
    Ok(fs::rename(partial, folder)?)
}

fn config(shape: &Shape) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "hidden_act": "silu",
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "rope_scaling": null,
        "attention_bias": false,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
    })
}

/// Every tensor of the checkpoint, under HF's names.
fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let Shape { hidden, intermediate, head_dim, .. } = *shape;
    let (queries, keys) = (shape.heads * head_dim, shape.kv_heads * head_dim);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![shape.vocab, hidden])];
    for layer in 0..shape.layers {
        let mut add = |name: &str, sizes: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), sizes.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[queries, hidden]);
        add("self_attn.k_proj", &[keys, hidden]);
        add("self_attn.v_proj", &[keys, hidden]);
        add("self_attn.o_proj", &[hidden, queries]);
        add("self_attn.q_norm", &[head_dim]);
        add("self_attn.k_norm", &[head_dim]);
        add("post_attention_layernorm", &[hidden]);
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    tensors
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
    fn a_random_folder_is_a_model_that_never_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny");
        let shape = Shape {
            hidden: 32,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            intermediate: 48,
            vocab: 101,
        };
        write_random(&path, &shape).unwrap();
        let model = Model::load(&path, ComputeDtype::Float32).unwrap();
        let parameters: usize =
            tensors(&shape).iter().map(|(_, sizes)| sizes.iter().product::<usize>()).sum();
        assert_eq!(model.decoder().footprint().parameters, parameters);
        assert_eq!(crate::time(&model, &[5, 17], 40).unwrap().tokens.len(), 40);
    }

    #[test]
    fn the_bundled_model_is_kept_from_ending() {
        let folder = tempfile::tempdir().unwrap();
        let model =
            Model::load(endless_bundled(folder.path()).unwrap(), ComputeDtype::Float32).unwrap();
        assert!(model.generation_config().eos_token_id.is_none());
    }
}
