//! What mlx-lm does to each family's weights when it reads them, and which modules it spares when it
//! quantizes.

use std::collections::BTreeMap;

use super::{
    checkpoint::{Checkpoint, Object, Stored},
    settings::{Recipe, Scheme},
    steps::Step,
};
use crate::{Error, ErrorKind, Result};

/// What stands in a folder's names for `model.`, `lm_head.` and `embed_tokens` of a plain text model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Naming {
    body: &'static str,
    head: &'static str,
    table: &'static str,
}

const USUAL: Naming = Naming { body: "model.", head: "lm_head.", table: "embed_tokens" };

/// A multimodal model's text model as mlx-lm has it, and as transformers 5 does.
const WRAPPED: Naming =
    Naming { body: "language_model.model.", head: "language_model.lm_head.", ..USUAL };
const WRAPPED_IN_MODEL: Naming = Naming { body: "model.language_model.", ..USUAL };

/// Nemotron-H's.
const BACKBONE: Naming = Naming { body: "backbone.", table: "embeddings", ..USUAL };

/// How names may begin, which is told by the token table.
const NAMINGS: [Naming; 7] = [
    USUAL,
    WRAPPED,
    WRAPPED_IN_MODEL,
    Naming { body: "language_model.", ..USUAL },
    BACKBONE,
    Naming { body: "model.", ..BACKBONE },
    Naming { body: "", ..USUAL },
];

impl Naming {
    /// As transformers has a family: like mlx-lm, but for the text models of multimodal ones.
    pub(super) fn of_transformers(family: &Family, is_multimodal: bool) -> Self {
        match (is_multimodal, family.naming.body) {
            (true, _) => WRAPPED_IN_MODEL,
            (false, "backbone.") => BACKBONE,
            (false, _) => USUAL,
        }
    }

    /// A plain text model's tensor or module under this name.
    pub(super) fn path(self, plain: &str) -> String {
        let Self { body, head, table } = self;
        match (plain.strip_prefix("model.embed_tokens"), plain.strip_prefix("model.")) {
            (Some(rest), _) if rest.is_empty() || rest.starts_with('.') => {
                format!("{body}{table}{rest}")
            }
            (_, Some(rest)) => format!("{body}{rest}"),
            (_, None) => match plain.strip_prefix("lm_head") {
                Some(rest) => format!("{}{rest}", head.trim_end_matches('.')),
                None => plain.to_owned(),
            },
        }
    }

    /// A tensor of a folder under the name that a plain text model has for it.
    fn plain(self, name: &str) -> Option<String> {
        if let Some(rest) = name.strip_prefix(self.head) {
            return Some(format!("lm_head.{rest}"));
        }
        let inner = name.strip_prefix(self.body)?;
        let of_table = inner.strip_prefix(self.table).filter(|it| it.starts_with('.'));
        Some(of_table.map_or(format!("model.{inner}"), |it| format!("model.embed_tokens{it}")))
    }

    /// What the token table is called.
    fn table(self) -> String {
        format!("{}{}.weight", self.body, self.table)
    }
}

/// A `model_type` and what is particular to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    model_type: &'static str,
    /// What a folder that mlx-lm wrote calls the parts of a plain text model.
    pub(super) naming: Naming,
    /// The `model_type` of the result, where mlx-lm knows the architecture under another name.
    pub(super) written_as: Option<&'static str>,
    /// From HF's tensors to MLX's, in this order; back in the opposite one.
    pub(super) steps: &'static [Step],
    /// Tensors that the graph has no use for: parts of their names, and what is said of them.
    unused: &'static [(&'static str, &'static str)],
    /// Behind the last layer stand others, which guess further tokens.
    has_further_layers: bool,
    /// mlx-lm keeps the keys and values of layers that share those of others.
    keeps_shared: bool,
    /// Parts of names whose floats keep their width: mlx-lm's `cast_predicate`.
    uncast: &'static [&'static str],
    /// Ends of paths that get 8 bits in groups of 64 whatever the rest gets: mlx-lm's
    /// `quant_predicate`.
    eight_bits: &'static [&'static str],
    /// Ends of paths that are not quantized: what mlx-lm does not keep in a `Linear`.
    unquantized: &'static [&'static str],
    /// Experts are packed in the published folders, so what else there is may be quantized too.
    pub(super) has_packed_experts: bool,
}

const PLAIN: Family = Family {
    model_type: "",
    naming: USUAL,
    written_as: None,
    steps: &[],
    unused: &[],
    has_further_layers: false,
    keeps_shared: false,
    uncast: &[],
    eight_bits: &[],
    unquantized: &[],
    has_packed_experts: false,
};

const SAME_NAMES: &[(&str, &str)] = &[];
const W_NAMES: &[(&str, &str)] = &[("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];

const STACK: Step =
    Step::Stack { from: ".mlp.experts.", to: ".mlp.switch_mlp.", names: SAME_NAMES };
const STACK_BLOCK_SPARSE: Step = Step::Stack {
    from: ".block_sparse_moe.experts.",
    to: ".block_sparse_moe.switch_mlp.",
    names: W_NAMES,
};
const HALVE: Step = Step::Halve {
    fused: ".mlp.experts.gate_up_proj",
    halves: [".mlp.switch_mlp.gate_proj.weight", ".mlp.switch_mlp.up_proj.weight"],
};
const NAME_DOWN: Step =
    Step::Rename { from: ".mlp.experts.down_proj", to: ".mlp.switch_mlp.down_proj.weight" };

/// Norms whose weight lacks the 1 in HF's folders: not the one within the gated delta layer.
const SHIFTED_NORMS: &[&str] = &[
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
];

const DELTA: Step = Step::Convolution { end: ".conv1d.weight", plus_one: SHIFTED_NORMS };

const MTP: (&str, &str) = ("mtp.", "mtp");

const QWEN3_5: Family = Family {
    model_type: "qwen3_5",
    naming: WRAPPED,
    steps: &[DELTA],
    unused: &[MTP],
    uncast: &["A_log"],
    ..PLAIN
};

const ROUTERS: &[&str] = &["mlp.gate", "shared_expert_gate"];

const QWEN3_5_MOE: Family = Family {
    model_type: "qwen3_5_moe",
    // As transformers writes them: one by one.
    steps: &[DELTA, HALVE, NAME_DOWN, STACK],
    eight_bits: ROUTERS,
    ..QWEN3_5
};

const GEMMA4_TEXT: Family = Family {
    model_type: "gemma4_text",
    steps: &[
        Step::Halve {
            fused: ".experts.gate_up_proj",
            halves: [".experts.switch_glu.gate_proj.weight", ".experts.switch_glu.up_proj.weight"],
        },
        Step::Rename { from: ".experts.down_proj", to: ".experts.switch_glu.down_proj.weight" },
    ],
    unused: &[
        ("input_max", "ranges of activations"),
        ("input_min", "ranges of activations"),
        ("output_max", "ranges of activations"),
        ("output_min", "ranges of activations"),
    ],
    eight_bits: &["router.proj"],
    ..PLAIN
};

const GEMMA4: Family = Family { model_type: "gemma4", naming: WRAPPED, ..GEMMA4_TEXT };

/// The correction of a router's choice.
const CORRECTION: &[&str] = &["e_score_correction_bias"];

const DEEPSEEK_V2: Family =
    Family { model_type: "deepseek_v2", steps: &[STACK], unquantized: &["mlp.gate"], ..PLAIN };

const DEEPSEEK_V3: Family = Family {
    model_type: "deepseek_v3",
    steps: &[STACK, Step::Latent],
    has_further_layers: true,
    uncast: CORRECTION,
    ..DEEPSEEK_V2
};

const KIMI_LINEAR: Family = Family {
    model_type: "kimi_linear",
    steps: &[
        Step::Stack { from: ".block_sparse_moe.experts.", to: ".mlp.switch_mlp.", names: W_NAMES },
        Step::Move { from: ".block_sparse_moe.shared_experts.", to: ".mlp.shared_experts." },
        Step::Move {
            from: ".block_sparse_moe.gate.e_score_correction_bias",
            to: ".mlp.e_score_correction_bias",
        },
        Step::Move { from: ".block_sparse_moe.gate.", to: ".mlp.gate." },
        // transformers saves dense layers under the mixtures' name, and reads both.
        Step::Accept { from: ".block_sparse_moe.", to: ".mlp." },
        Step::Move { from: ".q_conv1d.", to: ".q_conv.conv." },
        Step::Move { from: ".k_conv1d.", to: ".k_conv.conv." },
        Step::Move { from: ".v_conv1d.", to: ".v_conv.conv." },
        Step::Convolution { end: "_conv.conv.weight", plus_one: &[] },
        Step::Latent,
    ],
    unused: &[("model.mtp", "mtp")],
    uncast: &["e_score_correction_bias", "A_log", "dt_bias"],
    eight_bits: &["mlp.gate"],
    ..PLAIN
};

const LAGUNA: Family = Family {
    model_type: "laguna",
    steps: &[
        STACK,
        Step::Rename { from: ".mlp.gate.weight", to: ".mlp.gate.proj.weight" },
        Step::Rename {
            from: ".mlp.experts.e_score_correction_bias",
            to: ".mlp.gate.e_score_correction_bias",
        },
        // transformers' files have the singular, its modules the plural.
        Step::Accept { from: ".mlp.shared_experts.", to: ".mlp.shared_expert." },
    ],
    uncast: CORRECTION,
    eight_bits: &["mlp.gate.proj"],
    ..PLAIN
};

const LLAMA4_TEXT: Family = Family {
    model_type: "llama4_text",
    steps: &[
        Step::Stack {
            from: ".feed_forward.experts.",
            to: ".feed_forward.experts.",
            names: SAME_NAMES,
        },
        Step::Turned,
    ],
    ..PLAIN
};

const NEMOTRON_H: Family = Family {
    model_type: "nemotron_h",
    naming: BACKBONE,
    steps: &[
        Step::Convolution { end: ".conv1d.weight", plus_one: &[] },
        Step::Rename { from: ".mixer.experts.up_proj", to: ".mixer.switch_mlp.fc1.weight" },
        Step::Rename { from: ".mixer.experts.down_proj", to: ".mixer.switch_mlp.fc2.weight" },
        Step::Stack {
            from: ".mixer.experts.",
            to: ".mixer.switch_mlp.",
            names: &[("up_proj", "fc1"), ("down_proj", "fc2")],
        },
    ],
    unused: &[MTP],
    uncast: &["e_score_correction_bias", "A_log"],
    unquantized: &["mixer.gate"],
    ..PLAIN
};

const FAMILIES: [Family; 57] = [
    Family { model_type: "cohere2", ..PLAIN },
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    Family { model_type: "ernie4_5", ..PLAIN },
    Family {
        model_type: "ernie4_5_moe",
        steps: &[STACK],
        unused: &[
            (".mtp_block.", "mtp"),
            (".mtp_linear_proj.", "mtp"),
            (".mtp_hidden_norm.", "mtp"),
            (".mtp_emb_norm.", "mtp"),
        ],
        ..PLAIN
    },
    Family { model_type: "exaone4", ..PLAIN },
    Family { model_type: "falcon_h1", steps: &[Step::Factors], ..PLAIN },
    Family { model_type: "gemma", ..PLAIN },
    Family { model_type: "gemma2", ..PLAIN },
    Family { model_type: "gemma3", naming: WRAPPED, ..PLAIN },
    Family { model_type: "gemma3_text", ..PLAIN },
    Family { model_type: "gemma3n", naming: WRAPPED_IN_MODEL, keeps_shared: true, ..PLAIN },
    Family { model_type: "gemma3n_text", keeps_shared: true, ..PLAIN },
    GEMMA4,
    GEMMA4_TEXT,
    Family { model_type: "gemma4_unified", ..GEMMA4 },
    Family { model_type: "gemma4_unified_text", ..GEMMA4_TEXT },
    Family { model_type: "glm4", ..PLAIN },
    Family { model_type: "glm4_moe", steps: &[STACK], ..DEEPSEEK_V3 },
    Family { model_type: "glm4_moe_lite", ..DEEPSEEK_V3 },
    Family {
        model_type: "gpt_oss",
        steps: &[Step::OpenAi],
        eight_bits: &["router"],
        has_packed_experts: true,
        ..PLAIN
    },
    Family {
        model_type: "granite",
        eight_bits: &["self_attn.o_proj", "mlp.down_proj", "lm_head"],
        ..PLAIN
    },
    Family {
        model_type: "granitemoehybrid",
        steps: &[
            Step::Convolution { end: ".conv1d.weight", plus_one: &[] },
            Step::Halve {
                fused: ".block_sparse_moe.input_linear.weight",
                halves: [
                    ".block_sparse_moe.switch_mlp.gate_proj.weight",
                    ".block_sparse_moe.switch_mlp.up_proj.weight",
                ],
            },
            Step::Rename {
                from: ".block_sparse_moe.output_linear.weight",
                to: ".block_sparse_moe.switch_mlp.down_proj.weight",
            },
            Step::Without {
                part: ".block_sparse_moe.",
                steps: &[
                    Step::Halve {
                        fused: ".shared_mlp.input_linear.weight",
                        halves: [".mlp.gate_proj.weight", ".mlp.up_proj.weight"],
                    },
                    Step::Rename {
                        from: ".shared_mlp.output_linear.weight",
                        to: ".mlp.down_proj.weight",
                    },
                ],
            },
        ],
        eight_bits: &["router.layer"],
        ..PLAIN
    },
    Family { model_type: "hunyuan_v1_dense", ..PLAIN },
    Family { model_type: "kimi_k2", ..DEEPSEEK_V3 },
    KIMI_LINEAR,
    LAGUNA,
    Family {
        model_type: "lfm2",
        steps: &[Step::Convolution { end: ".conv.conv.weight", plus_one: &[] }],
        ..PLAIN
    },
    Family {
        model_type: "lfm2_moe",
        steps: &[
            Step::Convolution { end: ".conv.conv.weight", plus_one: &[] },
            Step::Stack {
                from: ".feed_forward.experts.",
                to: ".feed_forward.switch_mlp.",
                names: W_NAMES,
            },
            Step::Rename { from: ".feed_forward.w1.weight", to: ".feed_forward.gate_proj.weight" },
            Step::Rename { from: ".feed_forward.w2.weight", to: ".feed_forward.down_proj.weight" },
            Step::Rename { from: ".feed_forward.w3.weight", to: ".feed_forward.up_proj.weight" },
        ],
        uncast: &["expert_bias"],
        eight_bits: &["feed_forward.gate"],
        ..PLAIN
    },
    Family { model_type: "lfm3", ..PLAIN },
    Family { model_type: "llama", ..PLAIN },
    Family { model_type: "llama4", naming: WRAPPED, ..LLAMA4_TEXT },
    LLAMA4_TEXT,
    Family {
        model_type: "mellum",
        steps: &[HALVE, NAME_DOWN, STACK],
        unused: &[MTP],
        eight_bits: &["mlp.gate"],
        ..PLAIN
    },
    Family {
        model_type: "minimax_m2",
        steps: &[STACK_BLOCK_SPARSE],
        uncast: CORRECTION,
        eight_bits: &["block_sparse_moe.gate"],
        ..PLAIN
    },
    Family { model_type: "ministral3", ..PLAIN },
    Family { model_type: "mistral", ..PLAIN },
    Family { model_type: "mistral4", steps: &[STACK, HALVE, NAME_DOWN, Step::Latent], ..PLAIN },
    Family { model_type: "mixtral", steps: &[STACK_BLOCK_SPARSE], ..PLAIN },
    Family { model_type: "muse_glimmer", ..PLAIN },
    Family { model_type: "muse_glimmer_text", written_as: Some("muse_glimmer"), ..PLAIN },
    NEMOTRON_H,
    Family { model_type: "olmo2", ..PLAIN },
    Family { model_type: "olmo3", ..PLAIN },
    Family { model_type: "phi3", ..PLAIN },
    Family { model_type: "qwen2", ..PLAIN },
    Family { model_type: "qwen2_moe", steps: &[HALVE, NAME_DOWN, STACK], ..PLAIN },
    Family { model_type: "qwen3", ..PLAIN },
    QWEN3_5,
    QWEN3_5_MOE,
    Family { model_type: "qwen3_5_moe_text", written_as: Some("qwen3_5_moe"), ..QWEN3_5_MOE },
    Family { model_type: "qwen3_5_text", written_as: Some("qwen3_5"), ..QWEN3_5 },
    Family {
        model_type: "qwen3_moe",
        steps: &[HALVE, NAME_DOWN, STACK],
        eight_bits: &["mlp.gate"],
        ..PLAIN
    },
    Family {
        model_type: "qwen3_next",
        steps: &[DELTA, HALVE, NAME_DOWN, STACK],
        unused: &[MTP],
        eight_bits: ROUTERS,
        ..PLAIN
    },
    Family { model_type: "seed_oss", ..PLAIN },
    Family { model_type: "smollm3", ..PLAIN },
    Family { model_type: "starcoder2", ..PLAIN },
];

impl Family {
    /// The family that the config names; of a wrapper whose text models are several, the one within.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(name) = checkpoint.config.get("model_type").and_then(|it| it.as_str()) else {
            return Err(checkpoint.config_error("model_type", "is missing, or not text"));
        };
        if name == "mistral3" {
            let inner = checkpoint.config.get("text_config").and_then(|it| it.get("model_type"));
            let inner = inner.and_then(|it| it.as_str()).unwrap_or("mistral");
            let family = FAMILIES.iter().find(|it| it.model_type == inner);
            let what = || {
                format!(
                    "is {inner:?}; of mistral3 the text models ministral3, mistral and mistral4 are converted"
                )
            };
            let known =
                family.filter(|it| ["ministral3", "mistral", "mistral4"].contains(&it.model_type));
            let family =
                known.ok_or_else(|| checkpoint.config_error("text_config.model_type", what()))?;
            return Ok(Self { naming: WRAPPED, ..*family });
        }
        FAMILIES.iter().find(|it| it.model_type == name).copied().ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().map(|it| it.model_type).collect();
            let what = format!(
                "is {name:?}, which is not converted; known are {}, mistral3",
                known.join(", ")
            );
            checkpoint.config_error("model_type", what)
        })
    }

    /// The text model of a multimodal family, which is written under that one's name.
    pub(super) fn text_model(&self) -> Option<&'static str> {
        let of = |it: &&Self| it.written_as == Some(self.model_type);
        FAMILIES.iter().find(of).map(|it| it.model_type)
    }

    /// Whether the floats of a tensor are converted to another width.
    pub(super) fn is_cast(&self, name: &str) -> bool {
        !self.uncast.iter().any(|it| name.contains(it))
    }

    /// Whether mlx-lm's own rule for the family is 8 bits for this module.
    pub(super) fn keeps_eight_bits(&self, path: &str) -> bool {
        self.eight_bits.iter().any(|it| path.ends_with(it))
    }

    /// Whether a module may be quantized.
    pub(super) fn is_quantized(&self, path: &str) -> bool {
        !self.unquantized.iter().any(|it| path.ends_with(it))
    }

    /// What a tensor is called that the graph has no use for.
    fn unused(&self, checkpoint: &Checkpoint, plain: &str) -> Option<&'static str> {
        if let Some((_, what)) = self.unused.iter().find(|(part, _)| plain.contains(part)) {
            return Some(what);
        }
        let rest = plain.strip_prefix("model.layers.")?;
        let (index, rest) = rest.split_once('.')?;
        let index: usize = index.parse().ok()?;
        let layers = checkpoint.size("num_hidden_layers")?;
        if self.has_further_layers && index >= layers {
            return Some("layers for further tokens");
        }
        let is_of_keys = ["k_proj.", "v_proj.", "k_norm."]
            .iter()
            .any(|it| rest.strip_prefix("self_attn.").is_some_and(|rest| rest.starts_with(it)));
        let sharing = checkpoint.size("num_kv_shared_layers").unwrap_or(0);
        let is_shared = is_of_keys && index + sharing >= layers && !self.keeps_shared;
        is_shared.then_some("keys and values of layers that share others'")
    }
}

/// The layer that a plain text model's tensor is of.
pub(super) fn layer(plain: &str) -> Option<usize> {
    plain.strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok()
}

/// The tensors under the names of a plain text model, and the parts of a multimodal model that were
/// left out, with the number of their tensors.
pub(super) fn plain_names(
    checkpoint: &Checkpoint,
    family: &Family,
) -> Result<(BTreeMap<String, Stored>, BTreeMap<String, usize>)> {
    let naming = NAMINGS.iter().find(|it| checkpoint.tensors.contains_key(&it.table()));
    let Some(naming) = naming else {
        let what = format!(
            "{} holds no {}, so it is not a language model that can be converted",
            checkpoint.folder.display(),
            USUAL.table()
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
        let plain = naming.plain(name);
        let inner = name.strip_prefix("model.").unwrap_or(name);
        let part = match (family.unused(checkpoint, plain.as_ref().unwrap_or(name)), plain) {
            (Some(part), _) => part,
            (None, Some(plain)) => {
                kept.insert(plain, tensor.clone());
                continue;
            }
            (None, None) if is_multimodal => inner.split('.').next().unwrap_or_default(),
            (None, None) => return Err(checkpoint.error(tensor, "which no text model has")),
        };
        *left_out.entry(part.to_owned()).or_default() += 1;
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

/// What an entry of MLX's quantization says.
pub(super) fn scheme(entry: &Object) -> Result<Scheme> {
    let size = |key: &str| entry.get(key).and_then(|it| it.as_u64()).map(|it| it as usize);
    let mode = entry.get("mode").map_or("affine", |it| it.as_str().unwrap_or_default());
    Scheme::new(mode.parse()?, size("bits"), size("group_size"))
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
    let inferred = |columns: usize| {
        use super::settings::Mode::{Affine, Mxfp4, Mxfp8, Nvfp4};
        let (bits, group) = (words * 32 / columns, columns.checked_div(groups)?);
        let modes: &[_] = if has_biases { &[Affine] } else { &[Nvfp4, Mxfp4, Mxfp8] };
        modes.iter().find_map(|mode| Scheme::new(*mode, Some(bits), Some(group)).ok())
    };
    let found = match (quantization.get(path).and_then(|it| it.as_object()), columns) {
        (Some(entry), _) => scheme(entry).ok(),
        (None, Some(columns)) if columns > 0 => inferred(columns),
        (None, _) => scheme(quantization).ok(),
    }?;
    (words * 32 == groups * found.group_size() * found.bits()).then_some(found)
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
