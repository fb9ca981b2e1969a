//! Mixtral (HF `MixtralForCausalLM`): Mistral's attention, a mixture of experts in every layer.

use super::{RopeStyle, block, chosen_of, prelude::*, styled_rope, window};
use crate::{
    activation::Activation,
    block::FeedForward,
    moe::{MixtureNames, MixtureOfExperts, MixtureOptions},
    routed_experts::Gate,
    routing::{Routing, Scores},
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(8), head_dim: None, eps: 1e-5, tied: false, max_positions: 131_072 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = styled_rope(config, &dims, heads, RopeStyle::of_theta(1e6))?;
    let spec = spec(window(config, None)?);
    let (experts, chosen) =
        chosen_of(config, ("num_local_experts", 8), ("num_experts_per_tok", 2))?;
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let mixture = MixtureOptions {
        hidden: dims.hidden,
        inner: config.size("intermediate_size")?,
        experts,
        activation,
        expert_bias: false,
        routing: Routing { normalise: Some(0.0), ..Routing::new(Scores::Softmax, chosen) },
        router_bias: false,
        correction: false,
        shared: None,
    };
    let form = NormWeight::Plain;
    assemble("mixtral", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions::new(heads, rope.clone(), spec);
        let inside = format!("{at}.block_sparse_moe");
        let gate = Gate::Plain(activation);
        let names = MixtureNames::NUMBERED;
        let experts = MixtureOfExperts::load_named(weights, &inside, names, gate, mixture)?;
        let half = FeedForward::Mixture { experts };
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}
