//! Falcon-H1's factors, which mlx-lm puts into the matrices when it reads HF's folder.

use serde_json::Value;

use super::{checkpoint::Checkpoint, derived::Change, steps::Tensors};
use crate::Result;

/// Fields of the config, and the ends of the tensors that are multiplied by them.
const WHOLE: [(&str, &[&str]); 5] = [
    ("embedding_multiplier", &["embed_tokens.weight"]),
    ("lm_head_multiplier", &["lm_head.weight"]),
    ("attention_in_multiplier", &[".q_proj.weight", ".k_proj.weight"]),
    ("attention_out_multiplier", &[".o_proj.weight"]),
    ("ssm_out_multiplier", &[".out_proj.weight"]),
];

/// Of `mlp_multipliers`, in its order.
const MLP: [&str; 2] = [".gate_proj.weight", ".down_proj.weight"];

/// What the rows of this one are multiplied by differs: gate, inputs, keys, queries and steps.
const MIXER: &str = ".mamba.in_proj.weight";

/// Changes each matrix by its factor, or a factor per row, which are rounded to the matrix's dtype as
/// MLX does.
pub(super) fn put(
    checkpoint: &Checkpoint,
    tensors: &mut Tensors,
    change: fn(Vec<f32>) -> Change,
) -> Result<()> {
    for key in ["attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias"] {
        if checkpoint.config.get(key).and_then(Value::as_bool) == Some(true) {
            let what = "is true, beside factors that mlx-lm puts into the matrices alone";
            return Err(checkpoint.config_error(key, what));
        }
    }
    let mlp = several(checkpoint, "mlp_multipliers", 2)?;
    let of_mixer = mixer(checkpoint)?;
    let mut factors = Vec::new();
    for (key, ends) in WHOLE {
        let factor = one(checkpoint, key)?;
        factors.extend(ends.iter().map(|end| (*end, factor)));
    }
    factors.extend(MLP.into_iter().zip(mlp));
    for (name, tensor) in tensors {
        let Some(dtype) = tensor.float() else {
            if name.ends_with(".weight") {
                let what = "which is packed, so that factors cannot be put into it or taken out of it; \
                            dequantize it first";
                return Err(checkpoint.error(&tensor.parts[0], what));
            }
            continue;
        };
        if name.ends_with(MIXER) {
            let rows = &of_mixer.rows;
            if tensor.shape.first() != Some(&rows.len()) {
                let what = format!("which has not the {} rows of config.json", rows.len());
                return Err(checkpoint.error(&tensor.parts[0], what));
            }
            let all = dtype.round(of_mixer.all);
            let of_rows = rows.iter().map(|it| dtype.round(all * dtype.round(*it)));
            tensor.change(&change(of_rows.collect()));
        } else if let Some((_, factor)) = factors.iter().find(|(end, _)| name.ends_with(end)) {
            tensor.change(&change(vec![dtype.round(*factor)]));
        }
    }
    Ok(())
}

/// The factors of the matrix before the recurrence.
struct Mixer {
    all: f32,
    rows: Vec<f32>,
}

fn mixer(checkpoint: &Checkpoint) -> Result<Mixer> {
    let size = |key: &str| {
        let missing = || checkpoint.config_error(key, "is missing, or not a number");
        checkpoint.size(key).ok_or_else(missing)
    };
    let inner = size("mamba_d_ssm")?;
    let states = size("mamba_n_groups")? * size("mamba_d_state")?;
    let counts = [inner, inner, states, states, size("mamba_n_heads")?];
    let factors = several(checkpoint, "ssm_multipliers", 5)?;
    let rows = counts.into_iter().zip(factors).flat_map(|(count, it)| vec![it; count]).collect();
    Ok(Mixer { all: one(checkpoint, "ssm_in_multiplier")?, rows })
}

/// A factor, 1 where the config has none.
fn one(checkpoint: &Checkpoint, key: &str) -> Result<f32> {
    match checkpoint.config.get(key) {
        None | Some(Value::Null) => Ok(1.0),
        Some(value) => {
            let number =
                value.as_f64().ok_or_else(|| checkpoint.config_error(key, "is not a number"));
            Ok(number? as f32)
        }
    }
}

/// A list of factors, each 1 where the config has none.
fn several(checkpoint: &Checkpoint, key: &str, count: usize) -> Result<Vec<f32>> {
    let Some(value) = checkpoint.config.get(key).filter(|it| !it.is_null()) else {
        return Ok(vec![1.0; count]);
    };
    let numbers = value.as_array().filter(|it| it.len() == count);
    let numbers: Option<Vec<f32>> =
        numbers.and_then(|it| it.iter().map(|it| it.as_f64().map(|it| it as f32)).collect());
    numbers.ok_or_else(|| checkpoint.config_error(key, format!("is not a list of {count} numbers")))
}
