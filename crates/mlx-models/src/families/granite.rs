//! Granite 3 and 4, dense (HF `GraniteForCausalLM`): Llama with multipliers on embeddings, scores, each
//! half's addition, and logits.

use super::{prelude::*, transformer_block};
use crate::{block::FeedForward, mlp::GatedMlp};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-6, tied: false, max_positions: 2048 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    let mlp = MlpOptions { bias: mlp_bias, ..mlp(config, "hidden_act", "silu")? };
    let multiplier = |key| Ok::<_, crate::Error>(config.f32(key)?.unwrap_or(1.0));
    let scale = multiplier("attention_multiplier")?;
    let residual_scale = Some(multiplier("residual_multiplier")?);
    let logits_scaling = config.positive("logits_scaling")?.unwrap_or(1.0);
    let form = NormWeight::Plain;
    let options = DecoderOptions {
        embedding_scale: Some(multiplier("embedding_multiplier")?),
        logit_scale: Some((1.0 / logits_scaling) as f32),
        ..DecoderOptions::default()
    };
    assemble("granite", dims, weights, form, options, |weights, at, _| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            scale: Some(scale),
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), dims.hidden, mlp)?;
        let half = FeedForward::Gated { mlp };
        let mut block =
            transformer_block(weights, at, &dims, (Norms::Before, form), attention, half)?;
        block.residual_scale = residual_scale;
        Ok(Box::new(block))
    })
}
