//! A decoder block in two halves, each of which returns what it adds to the residual stream.
//!
//! The additions themselves belong to the decoder loop, so that the residual stream has one owner
//! and hooks see it between any two additions. A family with another token mixer (a recurrent layer,
//! latent attention) or another feed-forward half implements [`Block`] in its own file.

use std::fmt::Debug;

use mlx_rs::{Array, error::Result as MlxResult, ops::sigmoid};
use mlxgk_kv_cache::{LayerSpec, Pass, Seen, Step};

use crate::{
    Result,
    attention::{Softmax, attention, attention_with_weights},
    backend::Backend,
    config::{Dims, Heads},
    gated_delta::GatedDelta,
    latent::LatentAttention,
    linear::Linear,
    mamba2::Mamba2,
    mlp::{GatedMlp, PlainMlp},
    moe::MixtureOfExperts,
    norm::{NormWeight, RmsNorm},
    parameters::{Tensor, Visit, visit},
    rope::{Rope, Rotation},
    short_convolution::ShortConvolution,
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
    /// What queries are multiplied by, one per growth met so far; `None` where that is 1.
    growths: Vec<(Growth, Option<Array>)>,
    /// What the half at work leaves for the next half of its block.
    pub(crate) left: Option<Array>,
    /// Inputs for each layer, where the model has them: `[batch, tokens, layers, width]`.
    pub(crate) per_layer: Option<Array>,
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
        let (rotations, growths) = (Vec::new(), Vec::new());
        let (left, per_layer) = (None, None);
        Self { cache, long, rotations, growths, left, per_layer, weights: Wanted::No }
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
    pub(crate) fn rotation(&mut self, rope: &Rope) -> Result<Rotation> {
        if let Some((_, rotation)) = self.rotations.iter().find(|(it, _)| it.is(rope)) {
            return Ok(rotation.clone());
        }
        let rotation = rope.rotation(self.step(), self.long)?;
        self.rotations.push((rope.clone(), rotation.clone()));
        Ok(rotation)
    }

    /// `queries`, `[batch, heads, tokens, dimension]`, times what they grow by.
    pub(crate) fn grown(&mut self, queries: Array, growth: Growth) -> Result<Array> {
        let factors = match self.growths.iter().find(|(it, _)| *it == growth) {
            Some((_, factors)) => factors.clone(),
            None => {
                let factors = growth.factors(self.step());
                self.growths.push((growth, factors.clone()));
                factors
            }
        };
        match factors {
            None => Ok(queries),
            Some(factors) => Ok(queries.multiply(factors.as_dtype(queries.dtype())?)?),
        }
    }

    /// Softmax attention of `queries`, `[batch, heads, tokens, dimension]`, over what they see; leaves
    /// its weights where somebody asked for them.
    pub(crate) fn attend(
        &mut self,
        queries: &Array,
        seen: &Seen,
        softmax: Softmax<'_>,
        backend: Backend,
    ) -> Result<Array> {
        if matches!(self.weights, Wanted::No) {
            return attention(queries, seen, softmax, backend);
        }
        let (mixed, weights) = attention_with_weights(queries, seen, softmax)?;
        self.weights = Wanted::Left(weights);
        Ok(mixed)
    }
}

/// What a family supplies per layer.
pub(crate) trait Block: Debug + Send + Visit {
    /// What the token mixer adds to `hidden`, `[batch, tokens, hidden]`.
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Array>;

    /// What the feed-forward half adds to `hidden`, which has the first half's addition and what a hook
    /// made of it.
    fn feed_forward(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>)
    -> Result<Array>;

    /// What the stream is multiplied by after both additions (Gemma 4); `None` for 1.
    fn factor(&self) -> Option<&Array> {
        None
    }

    /// What the layer may see of the past.
    fn spec(&self) -> LayerSpec;

    /// How many numbers one more token adds to the layer's cache.
    fn cached_per_token(&self) -> usize;

    /// The attention of the block, where it is of the common kind.
    fn attention(&self) -> Option<&SelfAttention> {
        None
    }
}

/// A token mixer and a feed-forward layer, each behind a norm: all of the Llama-like families.
#[derive(Debug)]
pub(crate) struct TransformerBlock {
    pub(crate) input_norm: Option<RmsNorm>,
    pub(crate) mixer: Mixer,
    pub(crate) after_attention_norm: Option<RmsNorm>,
    pub(crate) feed_forward_norm: Option<RmsNorm>,
    pub(crate) feed_forward: FeedForward,
    pub(crate) after_feed_forward_norm: Option<RmsNorm>,
    /// What each half's addition is multiplied by (Granite); `None` for 1.
    pub(crate) residual_scale: Option<f32>,
}

impl TransformerBlock {
    /// What a half adds, of what it computed.
    fn addition(&self, computed: Array, norm: Option<&RmsNorm>) -> Result<Array> {
        let normed = match norm {
            None => computed,
            Some(norm) => norm.forward(&computed)?,
        };
        match self.residual_scale {
            None => Ok(normed),
            Some(scale) => {
                let scale = Array::from_f32(scale).as_dtype(normed.dtype())?;
                Ok(normed.multiply(scale)?)
            }
        }
    }
}

/// `x`, through the norm where there is one.
fn normed(norm: Option<&RmsNorm>, x: &Array) -> Result<Array> {
    match norm {
        None => Ok(x.clone()),
        Some(norm) => Ok(norm.forward(x)?),
    }
}

impl Block for TransformerBlock {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        let mixed = self.mixer.forward(layer, &normed(self.input_norm.as_ref(), hidden)?, pass)?;
        self.addition(mixed, self.after_attention_norm.as_ref())
    }

    fn feed_forward(&self, _: usize, hidden: &Array, _: &mut BlockPass<'_>) -> Result<Array> {
        let fed = self.feed_forward.forward(&normed(self.feed_forward_norm.as_ref(), hidden)?)?;
        self.addition(fed, self.after_feed_forward_norm.as_ref())
    }

    fn spec(&self) -> LayerSpec {
        self.mixer.spec()
    }

    fn cached_per_token(&self) -> usize {
        self.mixer.cached_per_token()
    }

    fn attention(&self) -> Option<&SelfAttention> {
        match &self.mixer {
            Mixer::Attention { attention } => Some(attention),
            _ => None,
        }
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
    /// After each half (OLMo 2).
    After,
    /// Before and after each half (Gemma 2 and 3).
    Around,
    /// The same under other names (GLM-4).
    AroundGlm,
    /// Before each half, under LFM2's names.
    BeforeLfm,
}

impl Norms {
    /// HF's names of the norms before and after attention, before and after the feed-forward half.
    fn names(self) -> [Option<&'static str>; 4] {
        let [input, post] = ["input_layernorm", "post_attention_layernorm"].map(Some);
        let post_feed_forward = Some("post_feedforward_layernorm");
        match self {
            Self::Before => [input, None, post, None],
            Self::After => [None, post, None, post_feed_forward],
            Self::Around => [input, post, Some("pre_feedforward_layernorm"), post_feed_forward],
            Self::BeforeLfm => [Some("operator_norm"), None, Some("ffn_norm"), None],
            Self::AroundGlm => {
                [input, Some("post_self_attn_layernorm"), post, Some("post_mlp_layernorm")]
            }
        }
    }
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
        let mut norm = |name: Option<&str>| {
            let load = |name| weights.norm(&format!("{at}.{name}"), dims.hidden, dims.eps, form);
            name.map(load).transpose()
        };
        let [before_attention, after_attention, before_feed_forward, after_feed_forward] =
            norms.names();
        Ok(Self {
            input_norm: norm(before_attention)?,
            mixer,
            after_attention_norm: norm(after_attention)?,
            feed_forward_norm: norm(before_feed_forward)?,
            feed_forward,
            after_feed_forward_norm: norm(after_feed_forward)?,
            residual_scale: None,
        })
    }
}

/// What lets a token look at those before it.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
pub(crate) enum Mixer {
    Attention { attention: SelfAttention },
    Delta { delta: GatedDelta },
    Convolution { convolution: ShortConvolution },
    Mamba { mamba: Mamba2 },
    Latent { latent: LatentAttention },
}

visit!(enum Mixer {
    Attention { attention },
    Delta { delta },
    Convolution { convolution },
    Mamba { mamba },
    Latent { latent },
});

impl Mixer {
    fn forward(&self, layer: usize, x: &Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        match self {
            Self::Attention { attention } => attention.forward(layer, x, pass),
            Self::Delta { delta } => delta.forward(layer, x, pass),
            Self::Convolution { convolution } => convolution.forward(layer, x, pass),
            Self::Mamba { mamba } => mamba.forward(layer, x, pass),
            Self::Latent { latent } => latent.forward(layer, x, pass),
        }
    }

    fn spec(&self) -> LayerSpec {
        match self {
            Self::Attention { attention } => attention.spec(),
            Self::Latent { latent } => latent.spec(),
            Self::Delta { .. } | Self::Convolution { .. } | Self::Mamba { .. } => LayerSpec::State,
        }
    }

    fn cached_per_token(&self) -> usize {
        match self {
            Self::Attention { attention } => attention.cached_per_token(),
            Self::Latent { latent } => latent.cached_per_token(),
            Self::Delta { .. } | Self::Convolution { .. } | Self::Mamba { .. } => 0,
        }
    }
}

/// Grouped-query attention.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    projections: Projections,
    output: Linear,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    norm_place: NormPlace,
    sinks: Option<Tensor>,
    rope: Option<Rope>,
    growth: Option<Growth>,
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

visit!(struct SelfAttention { projections, output, query_norm, key_norm, sinks });
visit!(enum Projections { Separate { query, key, value }, Fused { all } });

/// What differs between the families' attention layers.
#[derive(Debug, Clone)]
pub(crate) struct AttentionOptions {
    pub(crate) heads: Heads,
    /// `None`: queries and keys know no positions.
    pub(crate) rope: Option<Rope>,
    /// What queries are multiplied by after the rotation.
    pub(crate) growth: Option<Growth>,
    pub(crate) spec: LayerSpec,
    /// A bias on queries, keys and values.
    pub(crate) qkv_bias: bool,
    pub(crate) output_bias: bool,
    /// Norms on queries and keys.
    pub(crate) head_norms: Option<NormWeight>,
    pub(crate) norm_place: NormPlace,
    pub(crate) names: AttentionNames,
    /// Whether each head has a sink ([`Softmax::sinks`]).
    pub(crate) sinks: bool,
    /// `None`: `head_dim^-0.5`.
    pub(crate) scale: Option<f32>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) fused: bool,
    /// Whether the product for a head's query makes as many numbers again, whose sigmoid what the
    /// head returns is multiplied by (Qwen3.5).
    pub(crate) output_gate: bool,
}

/// What a family's checkpoints call some parts of attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionNames {
    pub(crate) output: &'static str,
    /// The norms on queries and keys.
    pub(crate) norms: [&'static str; 2],
}

impl AttentionNames {
    pub(crate) const USUAL: Self = Self { output: "o_proj", norms: ["q_norm", "k_norm"] };
}

/// What norms on queries and keys are over, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// Over each head, before the rotation.
    Head,
    /// Over all heads together, before the rotation (OLMo 2, MiniMax-M2).
    AllHeads,
    /// Over each head, after the rotation (Hunyuan).
    RotatedHead,
}

/// Queries that grow with their position p: times `1 + beta · ln(1 + ⌊p / context⌋)` (Ministral 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Growth {
    pub(crate) beta: f32,
    pub(crate) context: usize,
}

impl Growth {
    /// `[1 or batch, 1, tokens, 1]`; `None` where all are 1.
    fn factors(self, step: &Step) -> Option<Array> {
        let end = step.start() + step.count();
        let padding = step.padding();
        if end <= self.context + padding.iter().min().copied().unwrap_or(0) {
            return None;
        }
        let rows = if padding.iter().all(|&it| it == padding[0]) { 1 } else { padding.len() };
        let factor = |padding: usize, column: usize| {
            let times = (column.saturating_sub(padding) / self.context) as f32;
            1.0 + self.beta * (1.0 + times).ln()
        };
        let columns = step.start()..end;
        let factors: Vec<f32> = padding[..rows]
            .iter()
            .flat_map(|&padding| columns.clone().map(move |column| factor(padding, column)))
            .collect();
        Some(Array::from_slice(&factors, &[rows as i32, 1, step.count() as i32, 1]))
    }
}

impl AttentionOptions {
    /// Plain attention: no biases, no head norms, `head_dim^-0.5`.
    pub(crate) fn new(heads: Heads, rope: impl Into<Option<Rope>>, spec: LayerSpec) -> Self {
        Self {
            heads,
            rope: rope.into(),
            growth: None,
            norm_place: NormPlace::Head,
            names: AttentionNames::USUAL,
            sinks: false,
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
            &format!("{at}.{}", options.names.output),
            dims.hidden,
            query_rows,
            options.output_bias,
        )?;
        let sizes = match options.norm_place {
            NormPlace::Head | NormPlace::RotatedHead => [heads.dim; 2],
            NormPlace::AllHeads => [query_rows, kv_rows],
        };
        let mut head_norm = |index: usize| {
            let name = format!("{at}.{}", options.names.norms[index]);
            let load = |form| weights.norm(&name, sizes[index], dims.eps, form);
            options.head_norms.map(load).transpose()
        };
        let (query_norm, key_norm) = (head_norm(0)?, head_norm(1)?);
        let sinks = if options.sinks {
            Some(weights.tensor(&format!("{at}.sinks"), &[heads.count])?)
        } else {
            None
        };
        Ok(Self {
            projections,
            output,
            query_norm,
            key_norm,
            norm_place: options.norm_place,
            sinks,
            rope: options.rope,
            growth: options.growth,
            spec: options.spec,
            heads,
            scale: options.scale.unwrap_or_else(|| (heads.dim as f32).powf(-0.5)),
            soft_cap: options.soft_cap,
            output_gate: options.output_gate,
            backend: weights.backend(),
        })
    }

    pub(crate) fn spec(&self) -> LayerSpec {
        self.spec
    }

    pub(crate) fn cached_per_token(&self) -> usize {
        2 * self.heads.kv * self.heads.dim
    }

    /// Numbers per head of the keys and values it keeps.
    pub(crate) fn head_dim(&self) -> usize {
        self.heads.dim
    }

    /// What it computes by besides its weights, as a text that tells layers apart.
    pub(crate) fn settings(&self) -> String {
        let Self { heads, spec, scale, soft_cap, rope, .. } = self;
        let rope = rope.as_ref().map(Rope::settings);
        format!("{heads:?} {spec:?} {scale} {soft_cap:?} {rope:?}")
    }

    /// Keys of the layer, `[1, heads, columns, dim]`, moved by so many positions; `None` where what came
    /// after their rotation cannot be moved with it.
    pub(crate) fn turned(&self, keys: &Array, by: i32) -> Option<MlxResult<Array>> {
        if self.key_norm.is_some() && self.norm_place == NormPlace::RotatedHead {
            return None;
        }
        match &self.rope {
            None => Some(Ok(keys.clone())),
            Some(rope) => rope.turned(keys, by),
        }
    }

    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Array> {
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
        let heads = |x: &Array, count, norm: Option<&RmsNorm>| -> Result<Array> {
            let shape = if tokens == 1 { [batch, count, 1] } else { [batch, tokens, count] };
            let x = x.reshape(&[shape[0], shape[1], shape[2], head_dim])?;
            let x = normed(norm, &x)?;
            if tokens == 1 { Ok(x) } else { Ok(x.transpose_axes(&[0, 2, 1, 3])?) }
        };
        let rotation = self.rope.as_ref().map(|rope| pass.rotation(rope)).transpose()?;
        let placed = |x: &Array, count, norm: Option<&RmsNorm>| -> Result<Array> {
            let norm_at = |place| norm.filter(|_| self.norm_place == place);
            let x = normed(norm_at(NormPlace::AllHeads), x)?;
            let x = heads(&x, count, norm_at(NormPlace::Head))?;
            let x = match &rotation {
                None => x,
                Some(rotation) => rotation.apply(&x, self.backend)?,
            };
            normed(norm_at(NormPlace::RotatedHead), &x)
        };
        let queries = placed(&queries, query_heads, self.query_norm.as_ref())?;
        let keys = placed(&keys, kv_heads, self.key_norm.as_ref())?;
        let queries = match self.growth {
            None => queries,
            Some(growth) => pass.grown(queries, growth)?,
        };
        let values = heads(&values, kv_heads, None)?;
        let seen = pass.append(layer, &keys, &values)?;
        let sinks = self.sinks.as_ref().map(Tensor::array);
        let softmax = Softmax { scale: self.scale, soft_cap: self.soft_cap, sinks };
        let mixed = pass.attend(&queries, &seen, softmax, self.backend)?;
        let mixed = if tokens == 1 { mixed } else { mixed.transpose_axes(&[0, 2, 1, 3])? };
        let mixed = mixed.reshape(&[batch, tokens, query_heads * head_dim])?;
        let mixed = match gate {
            None => mixed,
            Some(gate) => mixed.multiply(sigmoid(gate)?.reshape(mixed.shape())?)?,
        };
        Ok(self.output.forward(&mixed)?)
    }
}

/// The feed-forward half: one layer, or several of which a router picks.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
pub(crate) enum FeedForward {
    Gated { mlp: GatedMlp },
    Plain { mlp: PlainMlp },
    Mixture { experts: MixtureOfExperts },
}

visit!(enum FeedForward { Gated { mlp }, Plain { mlp }, Mixture { experts } });

impl FeedForward {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Gated { mlp } => mlp.forward(x),
            Self::Plain { mlp } => mlp.forward(x),
            Self::Mixture { experts } => experts.forward(x),
        }
    }
}
