//! A decoder block in two halves, each of which returns what it adds to the residual stream.
//!
//! The additions themselves belong to the decoder loop, so that the residual stream has one owner
//! and hooks see it between any two additions. A family with another token mixer (a recurrent layer,
//! latent attention) or another feed-forward half implements [`Block`] in its own file.

use std::fmt::Debug;

use mlx_rs::Array;
use mlxgk_kv_cache::{KvCache, LayerSpec, Step};

use crate::{
    Result,
    activation::Activation,
    attention::attention,
    backend::Backend,
    config::Dims,
    linear::Linear,
    moe::MixtureOfExperts,
    norm::{NormWeight, RmsNorm},
    rope::{Rope, Rotation},
    weights::Weights,
};

/// One forward pass as a block sees it.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    /// Positions and masks.
    pub(crate) step: &'a Step,
    /// Whether the sequence exceeds the original context (see [`Rope::rotation`]).
    pub(crate) long: bool,
    /// One per embedding met so far.
    pub(crate) rotations: Vec<(Rope, Rotation)>,
    /// The caller's cache; a block reads and writes its own layer.
    pub(crate) cache: &'a mut KvCache,
}

impl Pass<'_> {
    /// What an embedding does to this pass's tokens; made once for all layers.
    fn rotation(&mut self, rope: &Rope) -> Result<Rotation> {
        if let Some((_, rotation)) = self.rotations.iter().find(|(it, _)| it.is(rope)) {
            return Ok(rotation.clone());
        }
        let rotation = rope.rotation(self.step, self.long)?;
        self.rotations.push((rope.clone(), rotation.clone()));
        Ok(rotation)
    }
}

/// What a family supplies per layer.
pub(crate) trait Block: Debug + Send {
    /// What the token mixer adds to `hidden`, `[batch, tokens, hidden]`.
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut Pass<'_>) -> Result<Array>;

    /// What the feed-forward half adds to `hidden`.
    fn feed_forward(&self, hidden: &Array) -> Result<Array>;
}

/// Attention and a feed-forward layer, each behind a norm: all of the Llama-like families.
#[derive(Debug)]
pub(crate) struct TransformerBlock {
    pub(crate) input_norm: RmsNorm,
    pub(crate) attention: SelfAttention,
    /// Gemma 2 and 3 norm what attention returns, too.
    pub(crate) after_attention_norm: Option<RmsNorm>,
    pub(crate) feed_forward_norm: RmsNorm,
    pub(crate) feed_forward: FeedForward,
    /// Gemma 2 and 3 norm what the feed-forward half returns, too.
    pub(crate) after_feed_forward_norm: Option<RmsNorm>,
}

impl Block for TransformerBlock {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut Pass<'_>) -> Result<Array> {
        let mixed = self.attention.forward(layer, &self.input_norm.forward(hidden)?, pass)?;
        match &self.after_attention_norm {
            Some(norm) => Ok(norm.forward(&mixed)?),
            None => Ok(mixed),
        }
    }

    fn feed_forward(&self, hidden: &Array) -> Result<Array> {
        let fed = self.feed_forward.forward(&self.feed_forward_norm.forward(hidden)?)?;
        match &self.after_feed_forward_norm {
            Some(norm) => Ok(norm.forward(&fed)?),
            None => Ok(fed),
        }
    }
}

impl TransformerBlock {
    /// The two-norm block under HF's usual names.
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        stored: NormWeight,
        attention: SelfAttention,
        feed_forward: FeedForward,
    ) -> Result<Self> {
        Ok(Self {
            input_norm: weights.norm(&format!("{at}.input_layernorm"), dims, stored)?,
            attention,
            after_attention_norm: None,
            feed_forward_norm: weights.norm(
                &format!("{at}.post_attention_layernorm"),
                dims,
                stored,
            )?,
            feed_forward,
            after_feed_forward_norm: None,
        })
    }

    /// The four-norm block of Gemma 2 and 3.
    pub(crate) fn load_sandwich(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        attention: SelfAttention,
        feed_forward: FeedForward,
    ) -> Result<Self> {
        let mut norm = |name: &str| weights.norm(&format!("{at}.{name}"), dims, NormWeight::Offset);
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            attention,
            after_attention_norm: Some(norm("post_attention_layernorm")?),
            feed_forward_norm: norm("pre_feedforward_layernorm")?,
            feed_forward,
            after_feed_forward_norm: Some(norm("post_feedforward_layernorm")?),
        })
    }
}

/// Grouped-query attention with rotary positions.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    projections: Projections,
    output: Linear,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    rope: Rope,
    spec: LayerSpec,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    scale: f32,
    soft_cap: Option<f32>,
    backend: Backend,
}

#[derive(Debug)]
enum Projections {
    Separate {
        query: Linear,
        key: Linear,
        value: Linear,
    },
    /// One product whose rows are queries, keys and values in turn (Phi-3).
    Fused(Linear),
}

/// What differs between the families' attention layers.
#[derive(Debug, Clone)]
pub(crate) struct AttentionOptions {
    pub(crate) rope: Rope,
    pub(crate) spec: LayerSpec,
    /// A bias on queries, keys and values.
    pub(crate) qkv_bias: bool,
    pub(crate) output_bias: bool,
    /// Norms on each head's queries and keys, before the rotation.
    pub(crate) head_norms: Option<NormWeight>,
    /// `None`: `head_dim^-0.5`.
    pub(crate) scale: Option<f32>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) fused: bool,
}

impl AttentionOptions {
    /// Plain attention: no biases, no head norms, `head_dim^-0.5`.
    pub(crate) fn new(rope: Rope, spec: LayerSpec) -> Self {
        Self {
            rope,
            spec,
            qkv_bias: false,
            output_bias: false,
            head_norms: None,
            scale: None,
            soft_cap: None,
            fused: false,
        }
    }
}

impl SelfAttention {
    /// Loads the layer at `at` (`model.layers.3.self_attn`).
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        options: AttentionOptions,
    ) -> Result<Self> {
        let query_rows = dims.heads * dims.head_dim;
        let kv_rows = dims.kv_heads * dims.head_dim;
        let bias = options.qkv_bias;
        let mut linear =
            |name: &str, rows| weights.linear(&format!("{at}.{name}"), rows, dims.hidden, bias);
        let projections = if options.fused {
            Projections::Fused(linear("qkv_proj", query_rows + 2 * kv_rows)?)
        } else {
            Projections::Separate {
                query: linear("q_proj", query_rows)?,
                key: linear("k_proj", kv_rows)?,
                value: linear("v_proj", kv_rows)?,
            }
        };
        let output = weights.linear(
            &format!("{at}.o_proj"),
            dims.hidden,
            query_rows,
            options.output_bias,
        )?;
        let mut head_norm = |name: &str| {
            options
                .head_norms
                .map(|it| weights.head_norm(&format!("{at}.{name}"), dims, it))
                .transpose()
        };
        Ok(Self {
            projections,
            output,
            query_norm: head_norm("q_norm")?,
            key_norm: head_norm("k_norm")?,
            rope: options.rope,
            spec: options.spec,
            heads: dims.heads as i32,
            kv_heads: dims.kv_heads as i32,
            head_dim: dims.head_dim as i32,
            scale: options.scale.unwrap_or_else(|| (dims.head_dim as f32).powf(-0.5)),
            soft_cap: options.soft_cap,
            backend: weights.backend(),
        })
    }

    fn forward(&self, layer: usize, x: &Array, pass: &mut Pass<'_>) -> Result<Array> {
        let (batch, tokens) = (x.dim(0), x.dim(1));
        let (queries, keys, values) = match &self.projections {
            Projections::Separate { query, key, value } => {
                (query.forward(x)?, key.forward(x)?, value.forward(x)?)
            }
            Projections::Fused(fused) => {
                let first = self.heads * self.head_dim;
                let second = first + self.kv_heads * self.head_dim;
                let parts = fused.forward(x)?.split_at_indices(&[first, second], -1)?;
                (parts[0].clone(), parts[1].clone(), parts[2].clone())
            }
        };
        // [batch, tokens, heads · dim] to [batch, heads, tokens, dim]; a single token stands there
        // already
        let heads = |x: &Array, count, norm: Option<&RmsNorm>| {
            let shape = if tokens == 1 { [batch, count, 1] } else { [batch, tokens, count] };
            let x = x.reshape(&[shape[0], shape[1], shape[2], self.head_dim])?;
            let x = norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(&x))?;
            if tokens == 1 { Ok(x) } else { x.transpose_axes(&[0, 2, 1, 3]) }
        };
        let rotation = pass.rotation(&self.rope)?;
        let rotate = |x: &Array| rotation.apply(x, self.backend);
        let queries = rotate(&heads(&queries, self.heads, self.query_norm.as_ref())?)?;
        let keys = rotate(&heads(&keys, self.kv_heads, self.key_norm.as_ref())?)?;
        let values = heads(&values, self.kv_heads, None)?;
        let (keys, values) = pass.cache.update(layer, &keys, &values)?;
        let mask = pass.step.mask(self.spec)?;
        let mixed =
            attention(&queries, &keys, &values, self.scale, mask, self.soft_cap, self.backend)?;
        let mixed = if tokens == 1 { mixed } else { mixed.transpose_axes(&[0, 2, 1, 3])? };
        let mixed = mixed.reshape(&[batch, tokens, self.heads * self.head_dim])?;
        Ok(self.output.forward(&mixed)?)
    }
}

/// The feed-forward half: one gated layer, or several of which a router picks.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Gated(GatedMlp),
    Experts(MixtureOfExperts),
}

impl FeedForward {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Gated(mlp) => mlp.forward(x),
            Self::Experts(experts) => experts.forward(x),
        }
    }
}

/// `down(activation(gate(x)) · up(x))` (Shazeer, 2020).
#[derive(Debug)]
pub(crate) struct GatedMlp {
    gate_up: GateUp,
    down: Linear,
    activation: Activation,
    backend: Backend,
}

#[derive(Debug)]
enum GateUp {
    Separate {
        gate: Linear,
        up: Linear,
    },
    /// One product whose rows are gate and up in turn (Phi-3).
    Fused(Linear),
}

impl GatedMlp {
    /// Loads the layer at `at` (`model.layers.3.mlp`).
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        activation: Activation,
        bias: bool,
    ) -> Result<Self> {
        let (hidden, inner) = (dims.hidden, dims.intermediate);
        let gate_up = GateUp::Separate {
            gate: weights.linear(&format!("{at}.gate_proj"), inner, hidden, bias)?,
            up: weights.linear(&format!("{at}.up_proj"), inner, hidden, bias)?,
        };
        let down = weights.linear(&format!("{at}.down_proj"), hidden, inner, bias)?;
        Ok(Self { gate_up, down, activation, backend: weights.backend() })
    }

    /// Loads the layer whose gate and up products are one tensor.
    pub(crate) fn load_fused(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        activation: Activation,
    ) -> Result<Self> {
        let (hidden, inner) = (dims.hidden, dims.intermediate);
        let fused = weights.linear(&format!("{at}.gate_up_proj"), 2 * inner, hidden, false)?;
        let down = weights.linear(&format!("{at}.down_proj"), hidden, inner, false)?;
        let backend = weights.backend();
        Ok(Self { gate_up: GateUp::Fused(fused), down, activation, backend })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let (gate, up) = match &self.gate_up {
            GateUp::Separate { gate, up } => (gate.forward(x)?, up.forward(x)?),
            GateUp::Fused(fused) => {
                let halves = fused.forward(x)?.split_equal(2, -1)?;
                (halves[0].clone(), halves[1].clone())
            }
        };
        Ok(self.down.forward(&self.activation.gate(&gate, &up, self.backend)?)?)
    }
}
