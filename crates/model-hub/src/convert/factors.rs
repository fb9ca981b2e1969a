//! Falcon-H1's factors, which mlx-lm puts into the matrices when it reads HF's folder.

use std::iter;

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
    let mlp: [f32; 2] = several(checkpoint, "mlp_multipliers")?;
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
            let rows = of_mixer.rows();
            if tensor.shape.len() != 2 || Some(tensor.shape[0]) != rows {
                let rows = rows.map_or("more rows than there can be".into(), |it| it.to_string());
                let what = format!("which does not have the shape [{rows}, hidden] of config.json");
                return Err(checkpoint.error(&tensor.parts[0], what));
            }
            let all = dtype.round(of_mixer.all);
            let of_row = |(count, factor): (usize, f32)| {
                iter::repeat_n(dtype.round(all * dtype.round(factor)), count)
            };
            tensor.change(&change(of_mixer.parts.into_iter().flat_map(of_row).collect()));
        } else if let Some((_, factor)) = factors.iter().find(|(end, _)| name.ends_with(end)) {
            tensor.change(&change(vec![dtype.round(*factor)]));
        }
    }
    Ok(())
}

/// The factors of the matrix before the recurrence.
struct Mixer {
    all: f32,
    /// How many rows follow one another, and their factor.
    parts: [(usize, f32); 5],
}

impl Mixer {
    /// How many rows there are, if they can be counted.
    fn rows(&self) -> Option<usize> {
        self.parts.iter().try_fold(0_usize, |sum, (count, _)| sum.checked_add(*count))
    }
}

fn mixer(checkpoint: &Checkpoint) -> Result<Mixer> {
    let size = |key: &str| {
        let missing = || checkpoint.config_error(key, "is missing, or not a number");
        checkpoint.size(key).ok_or_else(missing)
    };
    let inner = size("mamba_d_ssm")?;
    let groups = size("mamba_n_groups")?;
    let states = groups.checked_mul(size("mamba_d_state")?).ok_or_else(|| {
        let what = format!("is {groups}, which makes more states than can be counted");
        checkpoint.config_error("mamba_n_groups", what)
    })?;
    let heads = size("mamba_n_heads")?;
    let [gate, inputs, keys, queries, steps] = several(checkpoint, "ssm_multipliers")?;
    let parts = [(inner, gate), (inner, inputs), (states, keys), (states, queries), (heads, steps)];
    Ok(Mixer { all: one(checkpoint, "ssm_in_multiplier")?, parts })
}

/// A factor, 1 where the config has none.
fn one(checkpoint: &Checkpoint, key: &str) -> Result<f32> {
    match checkpoint.config.get(key) {
        None | Some(Value::Null) => Ok(1.0),
        Some(value) => factor(value).ok_or_else(|| {
            checkpoint
                .config_error(key, format!("is {value}, must be a finite number other than 0"))
        }),
    }
}

/// What can be multiplied by and divided by again, in fp32.
fn factor(value: &Value) -> Option<f32> {
    value.as_f64().map(|it| it as f32).filter(|it| it.is_finite() && *it != 0.0)
}

/// A list of factors, each 1 where the config has none.
fn several<const COUNT: usize>(checkpoint: &Checkpoint, key: &str) -> Result<[f32; COUNT]> {
    let Some(value) = checkpoint.config.get(key).filter(|it| !it.is_null()) else {
        return Ok([1.0; COUNT]);
    };
    let numbers: Option<Vec<f32>> = value.as_array().and_then(|it| it.iter().map(factor).collect());
    numbers.and_then(|it| it.try_into().ok()).ok_or_else(|| {
        let what = format!("is not a list of {COUNT} finite numbers other than 0");
        checkpoint.config_error(key, what)
    })
}
