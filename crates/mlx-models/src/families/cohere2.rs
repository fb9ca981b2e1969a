//! Command R7B and Command A (HF `Cohere2ForCausalLM`): both halves of a block read the same normed stream,
//! windowed layers are rotated in neighbouring pairs, full ones know no positions.

use mlx_rs::Array;

use super::{RopeStyle, prelude::*, sliding_layers, styled_rope, window};
use crate::{
    Error, ErrorKind, block::Block, mlp::GatedMlp, norm::RmsNorm, parameters::visit,
    pass::BlockPass, self_attention::SelfAttention,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-5, tied: true, max_positions: 8192 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let eps = config.f32("layer_norm_eps")?.unwrap_or(DEFAULTS.eps);
    let dims = Dims { eps, ..Dims::read(config, &DEFAULTS)? };
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let style = RopeStyle { interleaved: true, ..RopeStyle::of_theta(10_000.0) };
    let rope = styled_rope(config, &dims, heads, style)?;
    // What published configs call the rotation above.
    let key = "position_embedding_type";
    if let Some(other) = config.str(key)?.filter(|it| *it != "rope_gptj") {
        return Err(config.error(key, format_args!("is {other:?}; known is rope_gptj")));
    }
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let window = window(config, Some(4096))?;
    let pattern = config.usize("sliding_window_pattern")?.unwrap_or(4).max(1);
    let sliding = sliding_layers(config, &dims, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let mlp = mlp(config, "hidden_act", "silu")?;
    let form = NormWeight::Centred;
    let options = DecoderOptions {
        logit_scale: Some(config.f32("logit_scale")?.unwrap_or(0.0625)),
        ..DecoderOptions::default()
    };
    assemble("cohere2", dims, weights, form, options, |weights, at, layer| {
        let window = window.filter(|_| sliding[layer]);
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionOptions::new(heads, window.map(|_| rope.clone()), spec(window))
        };
        let inside = format!("{at}.self_attn");
        Ok(Box::new(ParallelBlock {
            norm: weights.norm(&format!("{at}.input_layernorm"), dims.hidden, dims.eps, form)?,
            attention: SelfAttention::load(weights, &inside, &dims, attention)?,
            mlp: GatedMlp::load(weights, &format!("{at}.mlp"), dims.hidden, mlp)?,
        }))
    })
}

/// `x + attention(norm(x)) + mlp(norm(x))`. What a hook does to the stream between the additions reaches
/// the blocks behind, but not this one's feed-forward half.
#[derive(Debug)]
struct ParallelBlock {
    norm: RmsNorm,
    attention: SelfAttention,
    mlp: GatedMlp,
}

visit!(struct ParallelBlock { norm, attention, mlp });

impl Block for ParallelBlock {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        let normed = self.norm.forward(hidden)?;
        let mixed = self.attention.forward(layer, &normed, pass)?;
        pass.left = Some(normed);
        Ok(Some(mixed))
    }

    fn feed_forward(&self, _: usize, _: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        let Some(normed) = pass.left.take() else {
            let what = "a parallel block's second half ran before its first";
            return Err(Error::new(ErrorKind::Mlx, what));
        };
        self.mlp.forward(&normed).map(Some)
    }

    fn spec(&self) -> LayerSpec {
        self.attention.spec()
    }

    fn cached_per_token(&self) -> usize {
        self.attention.cached_per_token()
    }

    fn attention(&self) -> Option<&SelfAttention> {
        Some(&self.attention)
    }
}
