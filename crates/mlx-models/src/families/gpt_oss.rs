//! gpt-oss (HF `GptOssForCausalLM`): a sink per head, alternating windows, experts with biases whose gate
//! is clamped.

use serde_json::json;

use super::{RopeStyle, block, chosen_of, prelude::*, sliding_layers, styled_rope, window};
use crate::{
    activation::Activation,
    block::FeedForward,
    moe::{MixtureNames, MixtureOfExperts, MixtureOptions},
    routed_experts::{ExpertNames, Gate},
    routing::{Routing, Scores},
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    head_dim: Some(64),
    eps: 1e-5,
    tied: false,
    max_positions: 131_072,
};

const NAMES: MixtureNames = MixtureNames {
    router: "router",
    experts: ExpertNames {
        together: "experts",
        transposed: true,
        interleaved: true,
        ..ExpertNames::USUAL
    },
    ..MixtureNames::USUAL
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    // What the class has for a config that names no rotary embedding.
    let config = &config.clone().or_value(
        "rope_parameters",
        json!({"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": false, "original_max_position_embeddings": 4096}),
    );
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = styled_rope(config, &dims, heads, RopeStyle::of_theta(150_000.0))?;
    let bias = config.bool("attention_bias")?.unwrap_or(true);
    let window = window(config, Some(128))?;
    let sliding = sliding_layers(config, &dims, |layer| layer % 2 == 0)?;
    let (experts, chosen) =
        chosen_of(config, ("num_local_experts", 128), ("num_experts_per_tok", 4))?;
    let routing = Routing::new(Scores::Logits, chosen);
    let mixture = MixtureOptions {
        hidden: dims.hidden,
        inner: config.size("intermediate_size")?,
        experts,
        activation: Activation::Silu,
        expert_bias: true,
        routing,
        router_bias: true,
        correction: false,
        shared: None,
    };
    let gate = Gate::Clamped {
        alpha: config.f32("swiglu_alpha")?.unwrap_or(1.702),
        limit: config.positive("swiglu_limit")?.unwrap_or(7.0) as f32,
    };
    let form = NormWeight::Plain;
    let options = DecoderOptions::default();
    assemble("gpt_oss", dims, weights, form, options, |weights, at, layer| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            sinks: true,
            ..AttentionOptions::new(heads, rope.clone(), spec(window.filter(|_| sliding[layer])))
        };
        let experts =
            MixtureOfExperts::load_named(weights, &format!("{at}.mlp"), NAMES, gate, mixture)?;
        let half = FeedForward::Mixture { experts };
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}
