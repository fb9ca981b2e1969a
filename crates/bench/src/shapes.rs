//! Configs of the models that are measured, and the tensors that each takes.
//!
//! Speed depends on a model's shape, not on what it has learned, so a config is all that is written down.

use serde_json::{Value, json};

/// Tokens of Qwen3's vocabulary.
pub const QWEN3_VOCAB: usize = 151_936;

/// A model's config and tensors, whose numbers are still to be drawn.
#[derive(Debug, Clone)]
pub struct Shape {
    /// `config.json`.
    pub config: Value,
    /// Every tensor of the checkpoint under HF's name.
    pub tensors: Vec<Tensor>,
}

/// A tensor of a shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// HF's name of it.
    pub name: String,
    /// Its axes.
    pub sizes: Vec<usize>,
    /// What all its numbers are; noise where it is `None`.
    pub value: Option<f32>,
}

impl Tensor {
    /// How many numbers it holds.
    pub fn count(&self) -> usize {
        self.sizes.iter().product()
    }
}

impl Shape {
    /// Qwen3-0.6B: 596 million parameters, 2.4 GB in fp32.
    pub fn dense() -> Self {
        Self::of_qwen3(json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "vocab_size": QWEN3_VOCAB,
            "hidden_act": "silu",
            "max_position_embeddings": 40_960,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000,
            "rope_scaling": null,
            "attention_bias": false,
            "tie_word_embeddings": true,
            "torch_dtype": "bfloat16",
        }))
    }

    /// A mixture with the ratios of Qwen3-30B-A3B, a quarter as wide and as deep: 507 million parameters,
    /// of which a token takes an eighth.
    pub fn mixture() -> Self {
        Self::of_qwen3(json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": 512,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "intermediate_size": 1536,
            "moe_intermediate_size": 192,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": true,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "vocab_size": 37_984,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000,
            "attention_bias": false,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
        }))
    }

    /// Qwen3.5-0.8B's language model: gated delta rules in three of four layers, 752 million parameters.
    pub fn hybrid() -> Self {
        Self::of_qwen3_5(json!({
            "architectures": ["Qwen3_5ForCausalLM"],
            "model_type": "qwen3_5_text",
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "full_attention_interval": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 16,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
            "intermediate_size": 3584,
            "vocab_size": 248_320,
            "hidden_act": "silu",
            "max_position_embeddings": 262_144,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25,
            },
            "attention_bias": false,
            "tie_word_embeddings": true,
            "torch_dtype": "bfloat16",
        }))
    }

    /// The tensors of a Qwen3 or Qwen3-MoE config. Norms hold 1.
    pub fn of_qwen3(config: Value) -> Self {
        let size = |key: &str| size(&config, key);
        let (hidden, dim) = (size("hidden_size"), size("head_dim"));
        let mut tensors = around(&config, 1.0);
        for layer in 0..size("num_hidden_layers") {
            let mut add = adding(&mut tensors, layer);
            norms(&mut add, hidden, 1.0);
            attention(&mut add, &config, size("num_attention_heads") * dim, 1.0);
            match size("num_experts") {
                0 => feed_forward(&mut add, "mlp", hidden, size("intermediate_size")),
                experts => {
                    add("mlp.gate.weight", &[experts, hidden], None);
                    for expert in 0..experts {
                        let at = format!("mlp.experts.{expert}");
                        feed_forward(&mut add, &at, hidden, size("moe_intermediate_size"));
                    }
                }
            }
        }
        Self { config, tensors }
    }

    /// The tensors of a Qwen3.5 config. Norms hold 0, to which this family adds 1, but for those of the
    /// delta layers' outputs.
    pub fn of_qwen3_5(config: Value) -> Self {
        let size = |key: &str| size(&config, key);
        let (hidden, dim) = (size("hidden_size"), size("head_dim"));
        let (heads, value_dim) = (size("linear_num_value_heads"), size("linear_value_head_dim"));
        let value = heads * value_dim;
        let mixed = 2 * size("linear_num_key_heads") * size("linear_key_head_dim") + value;
        let mut tensors = around(&config, 0.0);
        for layer in 0..size("num_hidden_layers") {
            let mut add = adding(&mut tensors, layer);
            norms(&mut add, hidden, 0.0);
            if (layer + 1).is_multiple_of(size("full_attention_interval")) {
                // Twice as many queries: one half is the gate.
                attention(&mut add, &config, 2 * size("num_attention_heads") * dim, 0.0);
            } else {
                add("linear_attn.in_proj_qkv.weight", &[mixed, hidden], None);
                add("linear_attn.in_proj_z.weight", &[value, hidden], None);
                add("linear_attn.in_proj_b.weight", &[heads, hidden], None);
                add("linear_attn.in_proj_a.weight", &[heads, hidden], None);
                let width = size("linear_conv_kernel_dim");
                add("linear_attn.conv1d.weight", &[mixed, 1, width], None);
                add("linear_attn.A_log", &[heads], None);
                add("linear_attn.dt_bias", &[heads], Some(1.0));
                add("linear_attn.norm.weight", &[value_dim], Some(1.0));
                add("linear_attn.out_proj.weight", &[hidden, value], None);
            }
            feed_forward(&mut add, "mlp", hidden, size("intermediate_size"));
        }
        Self { config, tensors }
    }

    /// How many of the weights a token is multiplied with: all but the experts that it is not fed to, and
    /// the table of tokens, unless that is the head, too.
    pub fn active_parameters(&self) -> usize {
        let tied = self.config["tie_word_embeddings"] == json!(true);
        let active = |it: &Tensor| match it.name.as_str() {
            "model.embed_tokens.weight" if !tied => 0,
            name if name.contains(".experts.") => {
                let [all, chosen] =
                    ["num_experts", "num_experts_per_tok"].map(|key| size(&self.config, key));
                it.count() * chosen / all
            }
            _ => it.count(),
        };
        self.tensors.iter().map(active).sum()
    }
}

/// Adds a tensor of a name in its layer, of these axes, and of noise or of one value.
type Add<'a> = dyn FnMut(&str, &[usize], Option<f32>) + 'a;

fn adding(tensors: &mut Vec<Tensor>, layer: usize) -> impl FnMut(&str, &[usize], Option<f32>) {
    move |name, sizes, value| {
        let name = format!("model.layers.{layer}.{name}");
        tensors.push(Tensor { name, sizes: sizes.to_vec(), value });
    }
}

/// What is before and behind the layers.
fn around(config: &Value, norm: f32) -> Vec<Tensor> {
    let hidden = size(config, "hidden_size");
    let table = vec![size(config, "vocab_size"), hidden];
    let tensor = |name: &str, sizes, value| Tensor { name: name.into(), sizes, value };
    let mut tensors = vec![
        tensor("model.embed_tokens.weight", table.clone(), None),
        tensor("model.norm.weight", vec![hidden], Some(norm)),
    ];
    if config["tie_word_embeddings"] == json!(false) {
        tensors.push(tensor("lm_head.weight", table, None));
    }
    tensors
}

fn norms(add: &mut Add<'_>, hidden: usize, value: f32) {
    add("input_layernorm.weight", &[hidden], Some(value));
    add("post_attention_layernorm.weight", &[hidden], Some(value));
}

/// Attention with norms on queries and keys, and this many rows of queries.
fn attention(add: &mut Add<'_>, config: &Value, queries: usize, norm: f32) {
    let [hidden, heads, kv_heads, dim] =
        ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"]
            .map(|key| size(config, key));
    add("self_attn.q_proj.weight", &[queries, hidden], None);
    add("self_attn.k_proj.weight", &[kv_heads * dim, hidden], None);
    add("self_attn.v_proj.weight", &[kv_heads * dim, hidden], None);
    add("self_attn.o_proj.weight", &[hidden, heads * dim], None);
    add("self_attn.q_norm.weight", &[dim], Some(norm));
    add("self_attn.k_norm.weight", &[dim], Some(norm));
}

fn feed_forward(add: &mut Add<'_>, at: &str, hidden: usize, inner: usize) {
    add(&format!("{at}.gate_proj.weight"), &[inner, hidden], None);
    add(&format!("{at}.up_proj.weight"), &[inner, hidden], None);
    add(&format!("{at}.down_proj.weight"), &[hidden, inner], None);
}

/// A size of a config; 0 where it has none.
fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or(0) as usize
}

impl Shape {
    /// The same with other values of some fields of the config.
    #[cfg(test)]
    fn with(self, of: impl Fn(Value) -> Self, fields: Value) -> Self {
        let (Value::Object(mut config), Value::Object(fields)) = (self.config, fields) else {
            panic!("not objects")
        };
        config.extend(fields);
        of(Value::Object(config))
    }
}

#[cfg(test)]
mod tests {
    use mlx_genkit::{ComputeDtype, Model};

    use super::*;
    use crate::models::write_random;

    fn small(vocab: usize) -> Value {
        json!({
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "intermediate_size": 48, "vocab_size": vocab, "moe_intermediate_size": 12,
            "num_experts_per_tok": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        })
    }

    #[test]
    fn every_shape_is_a_model_that_never_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut experts = small(103);
        experts["num_experts"] = 6.into();
        for (name, shape) in [
            ("dense", Shape::dense().with(Shape::of_qwen3, small(101))),
            ("mixture", Shape::mixture().with(Shape::of_qwen3, experts)),
            ("hybrid", Shape::hybrid().with(Shape::of_qwen3_5, small(107))),
        ] {
            let path = folder.path().join(name);
            write_random(&path, &shape).unwrap();
            let model = Model::load(&path, ComputeDtype::Float32).unwrap();
            let parameters: usize = shape.tensors.iter().map(Tensor::count).sum();
            assert_eq!(model.decoder().footprint().parameters, parameters, "{name}");
            assert_eq!(crate::time(&model, &[5, 17], 40).unwrap().tokens.len(), 40, "{name}");
        }
    }

    #[test]
    fn a_token_takes_an_eighth_of_the_mixture() {
        let all: usize = Shape::mixture().tensors.iter().map(Tensor::count).sum();
        let share = all as f64 / Shape::mixture().active_parameters() as f64;
        assert!((8.0..8.2).contains(&share), "{share}");
        let dense = Shape::dense();
        assert_eq!(
            dense.active_parameters(),
            dense.tensors.iter().map(Tensor::count).sum::<usize>()
        );
    }
}
