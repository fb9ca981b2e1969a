//! A decoder block in two halves, each of which returns what it adds to the residual stream.
//!
//! The additions themselves belong to the decoder loop, so that the residual stream has one owner
//! and hooks see it between any two additions. A family with another token mixer (a recurrent layer,
//! latent attention) or another feed-forward half implements [`Block`] in its own file.

use std::fmt::Debug;

use mlx_rs::{Array, ops::sigmoid};
use mlxgk_kv_cache::{LayerSpec, Pass, Seen, Step};

use crate::{
    Result,
    attention::{attention, attention_with_weights},
    backend::Backend,
    config::{Dims, Heads},
    gated_delta::GatedDelta,
    linear::Linear,
    mlp::GatedMlp,
    moe::MixtureOfExperts,
    norm::{NormWeight, RmsNorm},
    parameters::{Visit, visit},
    rope::{Rope, Rotation},
    weights::Weights,
};

/// One forward pass as a block sees it: the cache's pass, and what all blocks share.
#[derive(Debug)]
pub struct BlockPass<'c> {
    /// The caller's cache; a block reads and writes its own layer.
    pub(crate) cache: Pass<'c>,
    /// Whether the sequence exceeds the original context (see [`Rope::rotation`]).
    long: bool,
    /// One per embedding met so far.
    rotations: Vec<(Rope, Rotation)>,
    /// Whether the attention weights of the block at work are asked for, and those it left.
    pub(crate) weights: Wanted,
}

/// Attention weights, where they are asked for.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Nobody looks at them: attention is computed in one operation.
    No,
    /// They are to be left here.
    Yes,
    /// `[batch, heads, tokens, columns]`.
    Left(Array),
}

impl<'c> BlockPass<'c> {
    pub(crate) fn new(cache: Pass<'c>, long: bool) -> Self {
        Self { cache, long, rotations: Vec::new(), weights: Wanted::No }
    }

    /// The tokens' positions, ids and rows.
    pub fn step(&self) -> &Step {
        self.cache.step()
    }

    /// Brings a layer's new keys and values, `[batch, kv heads, tokens, dimension]` each, and returns
    /// all that the new tokens may look at.
    ///
    /// # Errors
    /// As [`Pass::append`].
    pub fn append(&mut self, layer: usize, keys: &Array, values: &Array) -> Result<Seen> {
        Ok(self.cache.append(layer, keys, values)?)
    }

    /// What a layer may look at that shares an earlier one's columns.
    ///
    /// # Errors
    /// As [`Pass::shared`].
    pub fn shared(&self, layer: usize) -> Result<Seen> {
        Ok(self.cache.shared(layer)?.clone())
    }

    /// The state that a layer left in the pass before; `None` before the first.
    ///
    /// # Errors
    /// As [`Pass::state`].
    pub fn state(&self, layer: usize) -> Result<Option<&[Array]>> {
        Ok(self.cache.state(layer)?)
    }

    /// Replaces the state of a layer. Left padding must have left it untouched: see [`Step::real`].
    ///
    /// # Errors
    /// As [`Pass::set_state`].
    pub fn set_state(&mut self, layer: usize, state: Vec<Array>) -> Result<()> {
        Ok(self.cache.set_state(layer, state)?)
    }

    /// `x`, `[batch, tokens, ..]`, with 0 in place of left padding: what a recurrence or a convolution
    /// is given, which have no mask.
    pub(crate) fn without_padding(&self, x: &Array) -> Result<Array> {
        match self.step().real() {
            None => Ok(x.clone()),
            Some(real) => Ok(x.multiply(real.expand_dims(-1)?.as_dtype(x.dtype())?)?),
        }
    }

    /// What an embedding does to this pass's tokens; made once for all layers.
    fn rotation(&mut self, rope: &Rope) -> Result<Rotation> {
        if let Some((_, rotation)) = self.rotations.iter().find(|(it, _)| it.is(rope)) {
            return Ok(rotation.clone());
        }
        let rotation = rope.rotation(self.step(), self.long)?;
        self.rotations.push((rope.clone(), rotation.clone()));
        Ok(rotation)
    }

    /// Softmax attention of `queries`, `[batch, heads, tokens, dimension]`, over what they see; leaves
    /// its weights where somebody asked for them.
    fn attend(
        &mut self,
        queries: &Array,
        seen: &Seen,
        scale: f32,
        soft_cap: Option<f32>,
        backend: Backend,
    ) -> Result<Array> {
        if matches!(self.weights, Wanted::No) {
            return attention(queries, seen, scale, soft_cap, backend);
        }
        let (mixed, weights) = attention_with_weights(queries, seen, scale, soft_cap)?;
        self.weights = Wanted::Left(weights);
        Ok(mixed)
    }
}

/// What a family supplies per layer.
pub(crate) trait Block: Debug + Send + Visit {
    /// What the token mixer adds to `hidden`, `[batch, tokens, hidden]`.
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Array>;

    /// What the feed-forward half adds to `hidden`.
    fn feed_forward(&self, hidden: &Array) -> Result<Array>;

    /// What the layer may see of the past.
    fn spec(&self) -> LayerSpec;

    /// How many numbers one more token adds to the layer's cache.
    fn cached_per_token(&self) -> usize;
}

/// A token mixer and a feed-forward layer, each behind a norm: all of the Llama-like families.
#[derive(Debug)]
pub(crate) struct TransformerBlock {
    pub(crate) input_norm: RmsNorm,
    pub(crate) mixer: Mixer,
    /// Gemma 2 and 3 norm what attention returns, too.
    pub(crate) after_attention_norm: Option<RmsNorm>,
    pub(crate) feed_forward_norm: RmsNorm,
    pub(crate) feed_forward: FeedForward,
    /// Gemma 2 and 3 norm what the feed-forward half returns, too.
    pub(crate) after_feed_forward_norm: Option<RmsNorm>,
}

impl Block for TransformerBlock {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        let mixed = self.mixer.forward(layer, &self.input_norm.forward(hidden)?, pass)?;
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

    fn spec(&self) -> LayerSpec {
        self.mixer.spec()
    }

    fn cached_per_token(&self) -> usize {
        self.mixer.cached_per_token()
    }
}

visit!(struct TransformerBlock {
    input_norm,
    mixer,
    after_attention_norm,
    feed_forward_norm,
    feed_forward,
    after_feed_forward_norm,
});

/// Where a block has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norms {
    /// Before each half.
    Before,
    /// Before and after each half (Gemma 2 and 3).
    Around,
}

impl TransformerBlock {
    /// Loads the norms at `at` (`model.layers.3`) around halves that are loaded.
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        (norms, form): (Norms, NormWeight),
        mixer: Mixer,
        feed_forward: FeedForward,
    ) -> Result<Self> {
        let mut norm =
            |name: &str| weights.norm(&format!("{at}.{name}"), dims.hidden, dims.eps, form);
        // HF gives the norm before the feed-forward half another name where one stands after
        // attention.
        let (after_attention, before_feed_forward) = match norms {
            Norms::Before => (None, "post_attention_layernorm"),
            Norms::Around => (Some("post_attention_layernorm"), "pre_feedforward_layernorm"),
        };
        let after_feed_forward = after_attention.map(|_| "post_feedforward_layernorm");
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            mixer,
            after_attention_norm: after_attention.map(&mut norm).transpose()?,
            feed_forward_norm: norm(before_feed_forward)?,
            feed_forward,
            after_feed_forward_norm: after_feed_forward.map(&mut norm).transpose()?,
        })
    }
}

/// What lets a token look at those before it.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
pub(crate) enum Mixer {
    Attention { attention: SelfAttention },
    Delta { delta: GatedDelta },
}

visit!(enum Mixer { Attention { attention }, Delta { delta } });

impl Mixer {
    fn forward(&self, layer: usize, x: &Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        match self {
            Self::Attention { attention } => attention.forward(layer, x, pass),
            Self::Delta { delta } => delta.forward(layer, x, pass),
        }
    }

    fn spec(&self) -> LayerSpec {
        match self {
            Self::Attention { attention } => attention.spec,
            Self::Delta { .. } => LayerSpec::State,
        }
    }

    fn cached_per_token(&self) -> usize {
        match self {
            Self::Attention { attention } => 2 * attention.heads.kv * attention.heads.dim,
            Self::Delta { .. } => 0,
        }
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
    heads: Heads,
    scale: f32,
    soft_cap: Option<f32>,
    output_gate: bool,
    backend: Backend,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
enum Projections {
    Separate {
        query: Linear,
        key: Linear,
        value: Linear,
    },
    /// One product whose rows are queries, keys and values in turn (Phi-3).
    Fused {
        all: Linear,
    },
}

visit!(struct SelfAttention { projections, output, query_norm, key_norm });
visit!(enum Projections { Separate { query, key, value }, Fused { all } });

/// What differs between the families' attention layers.
#[derive(Debug, Clone)]
pub(crate) struct AttentionOptions {
    pub(crate) heads: Heads,
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
    /// Whether the product for a head's query makes as many numbers again, whose sigmoid what the
    /// head returns is multiplied by (Qwen3.5).
    pub(crate) output_gate: bool,
}

impl AttentionOptions {
    /// Plain attention: no biases, no head norms, `head_dim^-0.5`.
    pub(crate) fn new(heads: Heads, rope: Rope, spec: LayerSpec) -> Self {
        Self {
            heads,
            rope,
            spec,
            qkv_bias: false,
            output_bias: false,
            head_norms: None,
            scale: None,
            soft_cap: None,
            fused: false,
            output_gate: false,
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
        let heads = options.heads;
        let (query_rows, kv_rows) = (heads.count * heads.dim, heads.kv * heads.dim);
        let bias = options.qkv_bias;
        let mut linear =
            |name: &str, rows| weights.linear(&format!("{at}.{name}"), rows, dims.hidden, bias);
        let projections = if options.fused {
            Projections::Fused { all: linear("qkv_proj", query_rows + 2 * kv_rows)? }
        } else {
            Projections::Separate {
                query: linear("q_proj", if options.output_gate { 2 } else { 1 } * query_rows)?,
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
                .map(|form| weights.norm(&format!("{at}.{name}"), heads.dim, dims.eps, form))
                .transpose()
        };
        Ok(Self {
            projections,
            output,
            query_norm: head_norm("q_norm")?,
            key_norm: head_norm("k_norm")?,
            rope: options.rope,
            spec: options.spec,
            heads,
            scale: options.scale.unwrap_or_else(|| (heads.dim as f32).powf(-0.5)),
            soft_cap: options.soft_cap,
            output_gate: options.output_gate,
            backend: weights.backend(),
        })
    }

    fn forward(&self, layer: usize, x: &Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        let (batch, tokens) = (x.dim(0), x.dim(1));
        let [query_heads, kv_heads, head_dim] =
            [self.heads.count, self.heads.kv, self.heads.dim].map(|it| it as i32);
        let (queries, keys, values) = match &self.projections {
            Projections::Separate { query, key, value } => {
                (query.forward(x)?, key.forward(x)?, value.forward(x)?)
            }
            Projections::Fused { all } => {
                let first = query_heads * head_dim;
                let second = first + kv_heads * head_dim;
                let parts = all.forward(x)?.split_at_indices(&[first, second], -1)?;
                (parts[0].clone(), parts[1].clone(), parts[2].clone())
            }
        };
        let (queries, gate) = if self.output_gate {
            let halves = queries.reshape(&[batch, tokens, query_heads, 2 * head_dim])?;
            let halves = halves.split_equal(2, -1)?;
            (halves[0].clone(), Some(halves[1].clone()))
        } else {
            (queries, None)
        };
        // [batch, tokens, heads · dim] to [batch, heads, tokens, dim]; a single token stands there
        // already
        let heads = |x: &Array, count, norm: Option<&RmsNorm>| {
            let shape = if tokens == 1 { [batch, count, 1] } else { [batch, tokens, count] };
            let x = x.reshape(&[shape[0], shape[1], shape[2], head_dim])?;
            let x = norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(&x))?;
            if tokens == 1 { Ok(x) } else { x.transpose_axes(&[0, 2, 1, 3]) }
        };
        let rotation = pass.rotation(&self.rope)?;
        let rotate = |x: &Array| rotation.apply(x, self.backend);
        let queries = rotate(&heads(&queries, query_heads, self.query_norm.as_ref())?)?;
        let keys = rotate(&heads(&keys, kv_heads, self.key_norm.as_ref())?)?;
        let values = heads(&values, kv_heads, None)?;
        let seen = pass.append(layer, &keys, &values)?;
        let mixed = pass.attend(&queries, &seen, self.scale, self.soft_cap, self.backend)?;
        let mixed = if tokens == 1 { mixed } else { mixed.transpose_axes(&[0, 2, 1, 3])? };
        let mixed = mixed.reshape(&[batch, tokens, query_heads * head_dim])?;
        let mixed = match gate {
            None => mixed,
            Some(gate) => mixed.multiply(sigmoid(gate)?.reshape(mixed.shape())?)?,
        };
        Ok(self.output.forward(&mixed)?)
    }
}

/// The feed-forward half: one gated layer, or several of which a router picks.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
pub(crate) enum FeedForward {
    Gated { mlp: GatedMlp },
    Mixture { experts: MixtureOfExperts },
}

visit!(enum FeedForward { Gated { mlp }, Mixture { experts } });

impl FeedForward {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Gated { mlp } => mlp.forward(x),
            Self::Mixture { experts } => experts.forward(x),
        }
    }
}
