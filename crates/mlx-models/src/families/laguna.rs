//! Laguna (HF `LagunaForCausalLM`): heads by layer, whose answers a softplus weighs, layers rotated their
//! own way, experts chosen by a sigmoid and a correction beside one for every token.

use serde_json::Value;

use super::{block, chosen_of, layer_kinds, prelude::*, ropes_by_kind, sliding_layers, window};
use crate::{
    activation::Activation,
    block::FeedForward,
    mlp::GatedMlp,
    moe::{MixtureNames, MixtureOfExperts, MixtureOptions},
    routed_experts::Gate,
    routing::{Routing, Scores},
    self_attention::{Gating, OutputGate},
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    head_dim: Some(128),
    eps: 1e-6,
    tied: false,
    max_positions: 131_072,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let counts = heads_by_layer(config, &dims, heads)?;
    let gate = output_gate(config)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let window = window(config, Some(512))?;
    let slides = sliding_layers(config, &dims, |_| false)?;
    let defaults = [(500_000.0, 0.5), (10_000.0, 1.0)];
    let ropes = ropes_by_kind(config, &dims, heads, &slides, defaults)?;
    let known = [("sparse", true), ("dense", false)];
    let is_sparse = layer_kinds(config, &dims, "mlp_layer_types", &known, |layer| layer > 0)?;
    let dense = mlp(config, "hidden_act", "silu")?;
    let mixture = mixture(config, &dims, dense.activation)?;
    let shared = config.usize("shared_expert_intermediate_size")?.unwrap_or(512);
    let shared = MlpOptions::new(shared, dense.activation);
    let form = NormWeight::Plain;
    assemble("laguna", dims, weights, form, DecoderOptions::default(), |weights, at, layer| {
        let spec = spec(window.filter(|_| slides[layer]));
        let heads = Heads { count: counts[layer], ..heads };
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            head_norms: Some(form),
            output_gate: Some(gate),
            ..AttentionOptions::new(heads, ropes[layer].clone(), spec)
        };
        let inside = format!("{at}.mlp");
        let half = if is_sparse[layer] {
            let (gate, names) = (Gate::Plain(dense.activation), names(weights, &inside));
            let experts = MixtureOfExperts::load_named(weights, &inside, names, gate, mixture)?;
            // HF's files have the singular, its modules the plural.
            let plural = format!("{inside}.shared_experts");
            let is_plural = weights.has(&format!("{plural}.up_proj.weight"));
            let at = if is_plural { plural } else { format!("{inside}.shared_expert") };
            let shared = GatedMlp::load(weights, &at, dims.hidden, shared)?;
            FeedForward::Mixture { experts: experts.beside(shared) }
        } else {
            FeedForward::Gated { mlp: GatedMlp::load(weights, &inside, dims.hidden, dense)? }
        };
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}

/// mlx-lm has the router's matrix a level further in, and HF the correction among the experts.
fn names(weights: &Weights, at: &str) -> MixtureNames {
    let has = |name: &str| weights.has(&format!("{at}.{name}"));
    MixtureNames {
        router: if has("gate.proj.weight") { "gate.proj" } else { "gate" },
        correction: if has("experts.e_score_correction_bias") {
            "experts.e_score_correction_bias"
        } else {
            "gate.e_score_correction_bias"
        },
        ..MixtureNames::USUAL
    }
}

/// How many heads each layer has for queries.
fn heads_by_layer(config: &Config, dims: &Dims, heads: Heads) -> Result<Vec<usize>> {
    let key = "num_attention_heads_per_layer";
    let counts = config.list(key, "a list of numbers", Value::as_u64)?;
    let Some(counts) = counts else { return Ok(vec![heads.count; dims.layers]) };
    if counts.len() != dims.layers {
        let what = format!("has {} entries for {} layers", counts.len(), dims.layers);
        return Err(config.error(key, what));
    }
    let fits = |it: u64| it > 0 && it.is_multiple_of(heads.kv as u64) && it <= u64::from(u16::MAX);
    if let Some(wrong) = counts.iter().find(|&&it| !fits(it)) {
        let what = format!("has {wrong} heads, for {} of keys and values", heads.kv);
        return Err(config.error(key, what));
    }
    Ok(counts.into_iter().map(|it| it as usize).collect())
}

/// `true` and `"per-head"` weigh whole heads, `"per-element"` and `false` (as in HF) each of their numbers.
fn output_gate(config: &Config) -> Result<OutputGate> {
    let key = "gating";
    let per_head = match config.get(key) {
        None | Some(Value::Bool(true)) => true,
        Some(Value::Bool(false)) => false,
        Some(Value::String(name)) if name == "per-head" => true,
        Some(Value::String(name)) if name == "per-element" => false,
        Some(other) => {
            let what = format_args!("is {other}; known are true, false, per-head and per-element");
            return Err(config.error(key, what));
        }
    };
    Ok(OutputGate::Own { name: "g_proj", of: Gating::Softplus, per_head })
}

fn mixture(config: &Config, dims: &Dims, activation: Activation) -> Result<MixtureOptions> {
    let key = "moe_apply_router_weight_on_input";
    if config.bool(key)?.unwrap_or(false) {
        return Err(config.error(key, "is true; known is false"));
    }
    let key = "moe_router_score_func";
    if let Some(other) = config.str(key)?.filter(|it| *it != "sigmoid") {
        return Err(config.error(key, format_args!("is {other:?}; known is sigmoid")));
    }
    let (experts, chosen) = chosen_of(config, ("num_experts", 256), ("num_experts_per_tok", 8))?;
    let logit_cap = config.f32("moe_router_logit_softcapping")?.filter(|it| *it > 0.0);
    let scale = config.f32("moe_routed_scaling_factor")?.unwrap_or(1.0);
    let routing = Routing::new(Scores::Sigmoid, chosen);
    Ok(MixtureOptions {
        hidden: dims.hidden,
        inner: config.usize("moe_intermediate_size")?.unwrap_or(512),
        experts,
        activation,
        expert_bias: false,
        routing: Routing { normalise: Some(0.0), scale, logit_cap, ..routing },
        router_bias: false,
        correction: true,
        shared: None,
    })
}
