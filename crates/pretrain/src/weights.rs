//! The weights that a run begins with.

use std::collections::HashMap;

use half::bf16;
use mlxgk_torch::TorchRng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::Result;

/// A file of weights for a `qwen3` config with tied embeddings, as transformers initializes them: matrices
/// normal around 0 with the config's `initializer_range`, norms 1. In bf16.
pub(crate) fn initial(config: &Value, seed: u64) -> Result<Vec<u8>> {
    if config["model_type"] != "qwen3" || config["tie_word_embeddings"] != true {
        return Err("config.json: expected model_type qwen3 with tie_word_embeddings".into());
    }
    let spread = config["initializer_range"].as_f64().unwrap_or(0.02);
    let mut rng = TorchRng::new(seed);
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, shape) in shapes(config)? {
        let count: usize = shape.iter().product();
        let mut bytes = Vec::with_capacity(2 * count);
        for _ in 0..count {
            let value = if shape.len() == 1 { 1.0 } else { spread * normal(&mut rng) };
            bytes.extend(bf16::from_f64(value).to_le_bytes());
        }
        tensors.push((name, shape, bytes));
    }
    let mut views = Vec::new();
    for (name, shape, bytes) in &tensors {
        views.push((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?));
    }
    // What transformers writes, and reads for.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// Names and shapes of all tensors.
fn shapes(config: &Value) -> Result<Vec<(String, Vec<usize>)>> {
    let size = |name: &str| -> Result<usize> {
        let value = config[name].as_u64().and_then(|it| usize::try_from(it).ok());
        Ok(value.ok_or_else(|| format!("config.json: has no whole number `{name}`"))?)
    };
    let (hidden, mlp, head) = (size("hidden_size")?, size("intermediate_size")?, size("head_dim")?);
    let queries = head * size("num_attention_heads")?;
    let keys = head * size("num_key_value_heads")?;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![size("vocab_size")?, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..size("num_hidden_layers")? {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("self_attn.q_norm", vec![head]),
            ("self_attn.k_norm", vec![head]),
            ("mlp.gate_proj", vec![mlp, hidden]),
            ("mlp.up_proj", vec![mlp, hidden]),
            ("mlp.down_proj", vec![hidden, mlp]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    Ok(shapes)
}

/// A draw from the normal distribution (Box and Muller, 1958).
fn normal(rng: &mut TorchRng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.uniform_f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.uniform_f64()).cos()
}
