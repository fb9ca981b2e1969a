//! MiniMax-M2 (HF `MiniMaxM2ForCausalLM`): norms over all heads' queries and keys, partly rotated heads,
//! experts chosen by a sigmoid and a correction.

use super::{RopeStyle, block, chosen_of, prelude::*, styled_rope};
use crate::{
    activation::Activation,
    block::FeedForward,
    moe::{MixtureNames, MixtureOfExperts, MixtureOptions},
    routed_experts::Gate,
    routing::{Routing, Scores},
    self_attention::NormPlace,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    head_dim: Some(128),
    eps: 1e-6,
    tied: false,
    max_positions: 196_608,
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    // The published checkpoints say how many dimensions are rotated, not which part.
    let part = match config.usize("rotary_dim")? {
        Some(rotated) => rotated as f64 / heads.dim as f64,
        None => 1.0,
    };
    let style = RopeStyle { part: Some(part), ..RopeStyle::of_theta(5e6) };
    let rope = styled_rope(config, &dims, heads, style)?;
    if let Some(other) = config.str("scoring_func")?.filter(|it| *it != "sigmoid") {
        return Err(config.error("scoring_func", format_args!("is {other:?}; known is sigmoid")));
    }
    let (experts, chosen) =
        chosen_of(config, ("num_local_experts", 256), ("num_experts_per_tok", 8))?;
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let mixture = MixtureOptions {
        hidden: dims.hidden,
        inner: config.size("intermediate_size")?,
        experts,
        activation,
        expert_bias: false,
        routing: Routing { normalise: Some(0.0), ..Routing::new(Scores::Sigmoid, chosen) },
        router_bias: false,
        correction: true,
        shared: None,
    };
    let form = NormWeight::Plain;
    assemble("minimax_m2", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions {
            head_norms: Some(form),
            norm_place: NormPlace::AllHeads,
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        let inside = format!("{at}.block_sparse_moe");
        let gate = Gate::Plain(activation);
        let names = MixtureNames::NUMBERED;
        let experts = MixtureOfExperts::load_named(weights, &inside, names, gate, mixture)?;
        let half = FeedForward::Mixture { experts };
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}
