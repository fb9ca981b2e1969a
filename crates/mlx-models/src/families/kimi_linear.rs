//! Kimi Linear (HF `KimiLinearForCausalLM`): Kimi Delta Attention in most layers, latent attention without
//! positions in the others, DeepSeek's mixture behind the first layers.

use serde_json::Value;

use super::{deepseek, layer_kinds, prelude::*};
use crate::{
    activation::Activation,
    block::{FeedForward, Mixer, TransformerBlock},
    kimi_delta::{KimiDelta, KimiDeltaOptions},
    latent::{LatentAttention, LatentOptions, LatentSizes},
    mlp::GatedMlp,
    moe::{MixtureNames, MixtureOfExperts, MixtureOptions},
    routed_experts::{ExpertNames, Gate},
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-5, tied: false, max_positions: 1_048_576 };

const SIZES: LatentSizes =
    LatentSizes { rank: 512, query_rank: None, plain: 128, rotary: 64, value: 128 };

const MIXTURE: deepseek::Mixture =
    deepseek::Mixture { inner: 1024, scale: 2.446, groups: (1, 1), ..deepseek::Mixture::V3 };

pub(super) fn build(config: &Config, mut weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let key = "mla_use_nope";
    if !config.bool(key)?.unwrap_or(true) {
        return Err(config.error(key, "is false; known is true"));
    }
    let key = "moe_router_activation_func";
    if let Some(other) = config.str(key)?.filter(|it| *it != "sigmoid") {
        return Err(config.error(key, format_args!("is {other:?}; known is sigmoid")));
    }
    let key = "moe_layer_freq";
    if let Some(step) = config.usize(key)?.filter(|&it| it != 1) {
        return Err(config.error(key, format_args!("is {step}; known is 1")));
    }
    let linear = config.object("linear_attn_config")?;
    let linear = linear.unwrap_or_else(|| config.empty("linear_attn_config"));
    let is_linear = linear_layers(config, &linear, &dims)?;
    let size = |key: &str, usual: &str, default| {
        if linear.has(key) {
            linear.size(key)
        } else if config.has(usual) {
            config.size(usual)
        } else {
            Ok(default)
        }
    };
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let delta = KimiDeltaOptions {
        hidden: dims.hidden,
        heads: size("num_heads", "linear_num_heads", 32)?,
        head_dim: size("head_dim", "linear_head_dim", 128)?,
        width: size("short_conv_kernel_size", "linear_conv_kernel_dim", 4)?,
        activation,
        eps: dims.eps,
    };
    let sizes = SIZES.read(config)?;
    let latent = LatentOptions {
        heads: config.size("num_attention_heads")?,
        rank: sizes.rank,
        query_rank: sizes.query_rank,
        plain: sizes.plain,
        rotary: sizes.rotary,
        value: sizes.value,
        bias: config.bool("attention_bias")?.unwrap_or(false),
        rope: None,
        growth: None,
        scale: ((sizes.plain + sizes.rotary) as f32).powf(-0.5),
    };
    let first = config.usize("first_k_dense_replace")?.unwrap_or(1);
    let known = [("sparse", true), ("dense", false)];
    let is_sparse = layer_kinds(config, &dims, "mlp_layer_types", &known, |it| it >= first)?;
    let mixture = MIXTURE.read_with(config, &dims, activation)?;
    let dense = mlp(config, "hidden_act", "silu")?;
    let form = NormWeight::Plain;
    // The heads for predicting further tokens.
    weights.leave_out("model.mtp");
    let options = DecoderOptions::default();
    assemble("kimi_linear", dims, weights, form, options, |weights, at, layer| {
        let inside = format!("{at}.self_attn");
        let mixer = if is_linear[layer] {
            Mixer::KimiDelta { delta: KimiDelta::load(weights, &inside, delta)? }
        } else {
            let latent = LatentAttention::load(weights, &inside, &dims, latent.clone())?;
            Mixer::Latent { latent }
        };
        let half = if is_sparse[layer] {
            FeedForward::Mixture { experts: experts(weights, at, mixture)? }
        } else {
            // transformers saves dense layers under the mixtures' name, too.
            let other = format!("{at}.block_sparse_moe");
            let is_other = weights.has(&format!("{other}.up_proj.weight"));
            let inside = if is_other { other } else { format!("{at}.mlp") };
            let mlp = GatedMlp::load(weights, &inside, dims.hidden, dense)?;
            FeedForward::Gated { mlp }
        };
        let norms = (Norms::Before, form);
        Ok(Box::new(TransformerBlock::load(weights, at, &dims, norms, mixer, half)?))
    })
}

/// By `layer_types`, else by the numbers in `linear_attn_config`, which count from 1, else all but each fourth
/// behind the first.
fn linear_layers(config: &Config, linear: &Config, dims: &Dims) -> Result<Vec<bool>> {
    let known = [("linear_attention", true), ("full_attention", false)];
    let (full, delta) = ("full_attn_layers", "kda_layers");
    if config.get("layer_types").is_some() || !(linear.has(full) && linear.has(delta)) {
        return layer_kinds(config, dims, "layer_types", &known, |it| it == 0 || it % 4 != 0);
    }
    let mut kinds = vec![None; dims.layers];
    for (key, kind) in [(full, false), (delta, true)] {
        let numbers = linear.list(key, "a list of layers", Value::as_u64)?.unwrap_or_default();
        for number in numbers {
            let place = (number as usize).checked_sub(1).and_then(|it| kinds.get_mut(it));
            let Some(place) = place else {
                let what = format!("holds {number}, for layers from 1 to {}", dims.layers);
                return Err(linear.error(key, what));
            };
            *place = Some(kind);
        }
    }
    let missing = |(layer, kind): (usize, Option<bool>)| {
        kind.ok_or_else(|| linear.error(delta, format_args!("and {full} lack {}", layer + 1)))
    };
    kinds.into_iter().enumerate().map(missing).collect()
}

/// The mixture of the block at `at`: under the published names, HF's, or mlx-lm's.
fn experts(weights: &mut Weights, at: &str, mixture: MixtureOptions) -> Result<MixtureOfExperts> {
    let published = format!("{at}.block_sparse_moe");
    let is_published = weights.has(&format!("{published}.gate.weight"));
    let inside = if is_published { published } else { format!("{at}.mlp") };
    let is_outside = weights.has(&format!("{inside}.e_score_correction_bias"));
    let names = MixtureNames {
        correction: if is_outside {
            "e_score_correction_bias"
        } else {
            "gate.e_score_correction_bias"
        },
        experts: if is_published { MixtureNames::NUMBERED.experts } else { ExpertNames::USUAL },
        ..MixtureNames::USUAL
    };
    let gate = Gate::Plain(mixture.activation);
    MixtureOfExperts::load_named(weights, &inside, names, gate, mixture)
}
