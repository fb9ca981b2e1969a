//! What mlx-lm does to each family's weights when it reads them, and which modules it spares when it
//! quantizes.

use std::collections::BTreeMap;

use super::{
    checkpoint::{Checkpoint, Object, Stored},
    settings::{Recipe, Scheme},
};
use crate::{Error, ErrorKind, Result};

/// A `model_type` and what is particular to it.
#[derive(Debug)]
pub(super) struct Family {
    model_type: &'static str,
    /// Stands before the names of a plain text model, in a folder that mlx-lm wrote.
    pub(super) prefix: &'static str,
    /// The experts of a layer, one by one in HF's folders, are stacked as `switch_mlp`.
    pub(super) stacks_experts: bool,
    /// Layers with a gated delta rule, among others: MLX's convolution has its axes in another order,
    /// and norms are stored with the 1 added that HF adds when it runs. Heads for further tokens
    /// (`mtp`) are left out.
    pub(super) is_recurrent: bool,
    /// Ends of names whose floats keep their width: mlx-lm's `cast_predicate`.
    uncast: &'static [&'static str],
    /// Ends of paths that get 8 bits in groups of 64 whatever the rest gets: mlx-lm's
    /// `quant_predicate`.
    eight_bits: &'static [&'static str],
}

const PLAIN: Family = Family {
    model_type: "",
    prefix: "",
    stacks_experts: false,
    is_recurrent: false,
    uncast: &[],
    eight_bits: &[],
};

const QWEN3_5: Family = Family {
    model_type: "qwen3_5",
    prefix: "language_model.",
    is_recurrent: true,
    uncast: &["A_log"],
    ..PLAIN
};

const ROUTERS: &[&str] = &["mlp.gate", "shared_expert_gate"];

const FAMILIES: [Family; 26] = [
    Family { model_type: "cohere2", ..PLAIN },
    Family { model_type: "ernie4_5", ..PLAIN },
    Family { model_type: "exaone4", ..PLAIN },
    Family { model_type: "gemma", ..PLAIN },
    Family { model_type: "gemma2", ..PLAIN },
    Family { model_type: "gemma3", prefix: "language_model.", ..PLAIN },
    Family { model_type: "gemma3_text", ..PLAIN },
    Family { model_type: "glm4", ..PLAIN },
    Family {
        model_type: "granite",
        eight_bits: &["self_attn.o_proj", "mlp.down_proj", "lm_head"],
        ..PLAIN
    },
    Family { model_type: "hunyuan_v1_dense", ..PLAIN },
    Family { model_type: "llama", ..PLAIN },
    Family { model_type: "ministral3", ..PLAIN },
    Family { model_type: "mistral", ..PLAIN },
    Family { model_type: "olmo2", ..PLAIN },
    Family { model_type: "olmo3", ..PLAIN },
    Family { model_type: "phi3", ..PLAIN },
    Family { model_type: "qwen2", ..PLAIN },
    Family { model_type: "qwen2_moe", stacks_experts: true, ..PLAIN },
    Family { model_type: "qwen3", ..PLAIN },
    QWEN3_5,
    Family { model_type: "qwen3_5_moe", stacks_experts: true, eight_bits: ROUTERS, ..QWEN3_5 },
    Family { model_type: "qwen3_moe", stacks_experts: true, eight_bits: &["mlp.gate"], ..PLAIN },
    Family {
        model_type: "qwen3_next",
        stacks_experts: true,
        is_recurrent: true,
        eight_bits: ROUTERS,
        ..PLAIN
    },
    Family { model_type: "seed_oss", ..PLAIN },
    Family { model_type: "smollm3", ..PLAIN },
    Family { model_type: "starcoder2", ..PLAIN },
];

impl Family {
    /// The family that the config names.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<&'static Self> {
        let Some(name) = checkpoint.config.get("model_type").and_then(|it| it.as_str()) else {
            return Err(checkpoint.config_error("model_type", "is missing, or no text"));
        };
        FAMILIES.iter().find(|it| it.model_type == name).ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().map(|it| it.model_type).collect();
            let what =
                format!("is {name:?}, which is not converted; known are {}", known.join(", "));
            checkpoint.config_error("model_type", what)
        })
    }

    /// Whether the floats of a tensor are converted to another width.
    pub(super) fn is_cast(&self, name: &str) -> bool {
        !self.uncast.iter().any(|it| name.ends_with(it))
    }

    /// Whether a norm's weight lacks the 1 in HF's folders: not the norm within the gated delta layer.
    pub(super) fn lacks_one(&self, name: &str) -> bool {
        const ENDS: [&str; 5] = [
            ".input_layernorm.weight",
            ".post_attention_layernorm.weight",
            "model.norm.weight",
            ".q_norm.weight",
            ".k_norm.weight",
        ];
        self.is_recurrent && ENDS.iter().any(|it| name.ends_with(it))
    }

    /// Whether mlx-lm's own rule for the family is 8 bits for this module.
    pub(super) fn keeps_eight_bits(&self, path: &str) -> bool {
        self.eight_bits.iter().any(|it| path.ends_with(it))
    }
}

/// How a folder's names begin: with what stands for `model.` and for `lm_head.` in a plain text model.
const NAMINGS: [(&str, &str); 5] = [
    ("model.", "lm_head."),
    ("language_model.model.", "language_model.lm_head."),
    ("model.language_model.", "lm_head."),
    ("language_model.", "lm_head."),
    ("", "lm_head."),
];

/// The tensors under the names of a plain text model, and the parts of a multimodal model that were
/// left out, with the number of their tensors.
pub(super) fn plain_names(
    checkpoint: &Checkpoint,
    family: &Family,
) -> Result<(BTreeMap<String, Stored>, BTreeMap<String, usize>)> {
    let table = |body: &str| format!("{body}embed_tokens.weight");
    let naming = NAMINGS.iter().find(|it| checkpoint.tensors.contains_key(&table(it.0)));
    let Some((body, head)) = naming else {
        let what = format!(
            "{} holds no {}, so it is not a language model that can be converted",
            checkpoint.folder.display(),
            table("model.")
        );
        return Err(Error::new(ErrorKind::Unsupported, what));
    };
    let is_multimodal = checkpoint.config.contains_key("text_config");
    let (mut kept, mut left_out) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in &checkpoint.tensors {
        // Old checkpoints carry rotary tables, which every graph computes.
        if name.ends_with("rotary_emb.inv_freq") {
            continue;
        }
        let plain = match (name.strip_prefix(head), name.strip_prefix(body)) {
            (Some(rest), _) => format!("lm_head.{rest}"),
            (None, Some(rest)) => format!("model.{rest}"),
            (None, None) if is_multimodal || (family.is_recurrent && name.starts_with("mtp.")) => {
                let inner = name.strip_prefix("model.").unwrap_or(name);
                let part = inner.split('.').next().unwrap_or_default();
                *left_out.entry(part.to_owned()).or_default() += 1;
                continue;
            }
            (None, None) => return Err(checkpoint.error(tensor, "which no text model has")),
        };
        kept.insert(plain, tensor.clone());
    }
    Ok((kept, left_out))
}

/// The width that a recipe gives a module: mlx-lm's `mixed_quant_predicate_builder`.
pub(super) fn recipe_bits(recipe: Recipe, path: &str, layers: usize) -> usize {
    let (low, high) = recipe.widths();
    let parts = path.split('.').skip_while(|it| *it != "layers").nth(1);
    let layer = parts.and_then(|it| it.parse::<usize>().ok()).unwrap_or(0);
    let outer = layers / 8;
    let more = layer < outer || layer >= 7 * layers / 8 || (layer - outer) % 3 == 2;
    let is_value = ["v_proj", "v_a_proj", "v_b_proj"].iter().any(|it| path.contains(it));
    let is_sensitive = is_value || path.contains("down_proj");
    if path.contains("lm_head") || (is_sensitive && more) { high } else { low }
}

/// The scheme of a packed weight of these words and groups per row: what the config says of the
/// module, else what its shapes say where its columns are known, as in mlx-lm, else what the config
/// says of all.
pub(super) fn packed_scheme(
    quantization: &Object,
    path: &str,
    columns: Option<usize>,
    words: usize,
    groups: usize,
    has_biases: bool,
) -> Option<Scheme> {
    let read = |entry: &Object| {
        let size = |key: &str| entry.get(key)?.as_u64().map(|it| it as usize);
        let mode = entry.get("mode").map_or(Some("affine"), |it| it.as_str())?;
        Scheme::new(mode.parse().ok()?, size("bits"), size("group_size")).ok()
    };
    let inferred = |columns: usize| {
        use super::settings::Mode::{Affine, Mxfp4, Mxfp8, Nvfp4};
        let (bits, group) = (words * 32 / columns, columns.checked_div(groups)?);
        let modes: &[_] = if has_biases { &[Affine] } else { &[Nvfp4, Mxfp4, Mxfp8] };
        modes.iter().find_map(|mode| Scheme::new(*mode, Some(bits), Some(group)).ok())
    };
    let scheme = match (quantization.get(path).and_then(|it| it.as_object()), columns) {
        (Some(entry), _) => read(entry),
        (None, Some(columns)) if columns > 0 => inferred(columns),
        (None, _) => read(quantization),
    }?;
    (words * 32 == groups * scheme.group_size() * scheme.bits()).then_some(scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_gives_the_outer_layers_and_every_third_more_bits() {
        let bits = |path: &str| recipe_bits(Recipe::Mixed3And6, path, 16);
        let high: Vec<usize> = (0..16)
            .filter(|it| bits(&format!("model.layers.{it}.self_attn.v_proj")) == 6)
            .collect();
        assert_eq!(high, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(bits("model.layers.0.self_attn.q_proj"), 3);
        assert_eq!(bits("model.layers.0.mlp.switch_mlp.down_proj"), 6);
        assert_eq!(bits("model.embed_tokens"), 3);
        assert_eq!(bits("lm_head"), 6);
    }
}
