//! Falcon-H1 (HF `FalconH1ForCausalLM`): attention and Mamba-2 side by side in every block, and factors at
//! every product.

use mlx_rs::Array;
use serde_json::Value;

use super::{assemble_before, prelude::*, rope};
use crate::{
    activation::Activation,
    block::Block,
    linear::Linear,
    mamba2::{Mamba2, MambaGating, MambaOptions, step_limit},
    norm::RmsNorm,
    parameters::visit,
    pass::BlockPass,
    self_attention::SelfAttention,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(8), head_dim: None, eps: 1e-5, tied: false, max_positions: 8192 };

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = rope(config, &dims, heads)?;
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    let factors = Factors::read(config)?;
    // mlx-lm folds most factors into the matrices as it converts, and turns the convolutions.
    let shape = weights.shape("model.layers.0.mamba.conv1d.weight");
    let is_folded = matches!(shape, Some(&[.., 1]));
    for key in ["attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias"] {
        if is_folded && config.bool(key)?.unwrap_or(false) {
            let what = "is true, beside factors that mlx-lm folded into the matrices alone";
            return Err(config.error(key, what));
        }
    }
    let factors = if is_folded { factors.left_by_mlx(dims.tied) } else { factors };
    let mamba = mamba(config, &dims, factors.projected)?;
    let activation = Activation::read(config, "hidden_act", "silu")?;
    let inner = config.size("intermediate_size")?;
    let form = NormWeight::Plain;
    let options = DecoderOptions {
        embedding_scale: Some(factors.embedding),
        logit_scale: Some(factors.logits),
        ..DecoderOptions::default()
    };
    let norm = ("model.final_layernorm", form);
    assemble_before("falcon_h1", dims, weights, norm, options, |weights, at, layer| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            scale: Some(factors.key * (heads.dim as f32).powf(-0.5)),
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        let inside = format!("{at}.self_attn");
        let norm = |weights: &mut Weights, name: &str| {
            weights.norm(&format!("{at}.{name}"), dims.hidden, dims.eps, form)
        };
        let linear = |weights: &mut Weights, name: &str, rows, columns| {
            weights.linear(&format!("{at}.feed_forward.{name}"), rows, columns, mlp_bias)
        };
        Ok(Box::new(FalconBlock {
            input_norm: norm(weights, "input_layernorm")?,
            attention: SelfAttention::load(weights, &inside, &dims, attention)?,
            mamba: Mamba2::load(weights, &format!("{at}.mamba"), mamba)?,
            state: dims.layers + layer,
            feed_forward_norm: norm(weights, "pre_ff_layernorm")?,
            gate: linear(weights, "gate_proj", inner, dims.hidden)?,
            up: linear(weights, "up_proj", inner, dims.hidden)?,
            down: linear(weights, "down_proj", dims.hidden, inner)?,
            activation,
            factors,
        }))
    })
}

fn mamba(config: &Config, dims: &Dims, projected: [f32; 5]) -> Result<MambaOptions> {
    let size = |key: &str, default: usize| match config.has(key) {
        true => config.size(key),
        false => Ok(default),
    };
    let heads = size("mamba_n_heads", 128)?;
    let inner = match config.has("mamba_d_ssm") {
        true => config.usize("mamba_d_ssm")?,
        false => Some(1024),
    };
    let inner = match inner {
        Some(inner) => inner,
        None => size("mamba_expand", 2)? * dims.hidden,
    };
    let key = "mamba_d_head";
    let auto = config.get(key).is_none_or(|it| it.as_str() == Some("auto"));
    let head_dim = if auto { inner / heads } else { config.size(key)? };
    if heads.checked_mul(head_dim) != Some(inner) || inner == 0 {
        let what = format!("and {heads} heads do not make the {inner} channels");
        return Err(config.error(key, what));
    }
    let flag = |key: &str, default| Ok::<_, crate::Error>(config.bool(key)?.unwrap_or(default));
    MambaOptions {
        hidden: dims.hidden,
        heads,
        head_dim,
        groups: size("mamba_n_groups", 1)?,
        state: size("mamba_d_state", 256)?,
        width: size("mamba_d_conv", 4)?,
        bias: flag("mamba_proj_bias", false)?,
        output_bias: flag("projectors_bias", false)?,
        convolution_bias: flag("mamba_conv_bias", true)?,
        activation: Activation::read(config, "hidden_act", "silu")?,
        step_limit: step_limit(config, "time_step_limit")?,
        eps: dims.eps,
        gating: match (flag("mamba_rms_norm", false)?, flag("mamba_norm_before_gate", true)?) {
            (false, _) => MambaGating::Gate,
            (true, true) => MambaGating::NormThenGate,
            (true, false) => MambaGating::GateThenNorm,
        },
        multipliers: Some(projected).filter(|it| it.iter().any(|it| *it != 1.0)),
    }
    .check(config, "mamba_n_groups")
}

/// What inputs and outputs of products are multiplied by.
#[derive(Debug, Clone, Copy)]
struct Factors {
    embedding: f32,
    logits: f32,
    attention_in: f32,
    key: f32,
    attention_out: f32,
    mamba_in: f32,
    /// Gate, inputs, keys, queries and steps.
    projected: [f32; 5],
    mamba_out: f32,
    gate: f32,
    down: f32,
}

impl Factors {
    fn read(config: &Config) -> Result<Self> {
        let one = |key: &str| Ok::<_, crate::Error>(config.f32(key)?.unwrap_or(1.0));
        let several = |key: &str, count: usize| -> Result<Vec<f32>> {
            let found = config.list(key, "a list of numbers", Value::as_f64)?;
            let found = found.unwrap_or_else(|| vec![1.0; count]);
            if found.len() != count {
                let what = format!("has {} numbers, not {count}", found.len());
                return Err(config.error(key, what));
            }
            Ok(found.into_iter().map(|it| it as f32).collect())
        };
        let mut projected = [1.0; 5];
        projected.copy_from_slice(&several("ssm_multipliers", 5)?);
        let mlp = several("mlp_multipliers", 2)?;
        Ok(Self {
            embedding: one("embedding_multiplier")?,
            logits: one("lm_head_multiplier")?,
            attention_in: one("attention_in_multiplier")?,
            key: one("key_multiplier")?,
            attention_out: one("attention_out_multiplier")?,
            mamba_in: one("ssm_in_multiplier")?,
            projected,
            mamba_out: one("ssm_out_multiplier")?,
            gate: mlp[0],
            down: mlp[1],
        })
    }

    /// Those that mlx-lm's converted matrices do not hold: of attention's input the values', which is one
    /// of its output, and the keys'; of a tied head what its table has too much.
    fn left_by_mlx(self, is_tied: bool) -> Self {
        Self {
            embedding: 1.0,
            logits: if is_tied { self.logits / self.embedding } else { 1.0 },
            attention_in: 1.0,
            key: self.key,
            attention_out: self.attention_in,
            mamba_in: 1.0,
            projected: [1.0; 5],
            mamba_out: 1.0,
            gate: 1.0,
            down: 1.0,
        }
    }
}

/// `x + attention(norm(x)) + mamba(norm(x))`, then the feed-forward half.
#[derive(Debug)]
struct FalconBlock {
    input_norm: RmsNorm,
    attention: SelfAttention,
    mamba: Mamba2,
    /// The cache's layer for the recurrence.
    state: usize,
    feed_forward_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
    factors: Factors,
}

visit!(struct FalconBlock { input_norm, attention, mamba, feed_forward_norm, gate, up, down });

/// `x` times a factor.
fn times(x: Array, factor: f32) -> Result<Array> {
    if factor == 1.0 {
        return Ok(x);
    }
    Ok(x.multiply(Array::from_f32(factor).as_dtype(x.dtype())?)?)
}

impl Block for FalconBlock {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        let factors = self.factors;
        let x = self.input_norm.forward(hidden)?;
        let of_mamba = times(x.clone(), factors.mamba_in)?;
        let of_mamba = times(self.mamba.forward(self.state, &of_mamba, pass)?, factors.mamba_out)?;
        let attended = times(x, factors.attention_in)?;
        let attended = self.attention.forward(layer, &attended, pass)?;
        Ok(Some(of_mamba.add(times(attended, factors.attention_out)?)?))
    }

    fn feed_forward(
        &self,
        _: usize,
        hidden: &Array,
        _: &mut BlockPass<'_>,
    ) -> Result<Option<Array>> {
        let x = self.feed_forward_norm.forward(hidden)?;
        let gate = times(self.gate.forward(&x)?, self.factors.gate)?;
        let inner = self.activation.forward(&gate)?.multiply(self.up.forward(&x)?)?;
        times(self.down.forward(&inner)?, self.factors.down).map(Some)
    }

    fn spec(&self) -> LayerSpec {
        self.attention.spec()
    }

    fn second_spec(&self) -> Option<LayerSpec> {
        Some(LayerSpec::State)
    }

    fn cached_per_token(&self) -> usize {
        self.attention.cached_per_token()
    }

    fn attention(&self) -> Option<&SelfAttention> {
        Some(&self.attention)
    }
}
