//! Mistral (HF `MistralForCausalLM`): Llama without biases, every layer with a sliding window.

use crate::{
    Decoder, Result,
    activation::Activation,
    block::{AttentionOptions, FeedForward, GatedMlp, SelfAttention, TransformerBlock},
    config::{Config, Defaults, Dims},
    decoder::DecoderOptions,
    families::{assemble, layer_name, spec, window},
    norm::NormWeight,
    rope::{Rope, RopeParameters},
    weights::Weights,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(8), head_dim: None, eps: 1e-6, tied: false, max_positions: 131_072 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let rope = Rope::new(&parameters, dims.head_dim, dims.head_dim)?;
    let spec = spec(window(config, Some(4096))?);
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let stored = NormWeight::Plain;
    assemble(
        "mistral",
        dims.clone(),
        weights,
        stored,
        DecoderOptions::default(),
        |weights, layer| {
            let at = layer_name(layer);
            let options = AttentionOptions::new(rope.clone(), spec);
            let attention =
                SelfAttention::load(weights, &format!("{at}.self_attn"), &dims, options)?;
            let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), &dims, activation, false)?;
            let mlp = FeedForward::Gated(mlp);
            let block = TransformerBlock::load(weights, &at, &dims, stored, attention, mlp)?;
            Ok((spec, Box::new(block)))
        },
    )
}
