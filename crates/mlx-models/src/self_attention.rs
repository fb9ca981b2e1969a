//! Grouped-query attention: what all families but those with latents attend by.

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::{logaddexp, sigmoid},
};
use mlxgk_kv_cache::LayerSpec;

use crate::{
    Result,
    attention::Softmax,
    backend::Backend,
    config::{Dims, Heads},
    growth::Growth,
    linear::Linear,
    norm::{NormWeight, RmsNorm, normed},
    parameters::{Tensor, visit},
    pass::BlockPass,
    rope::{Rope, Rotation},
    weights::Weights,
};

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
    gate: Option<Gate>,
    backend: Backend,
}

/// What the heads' answers are multiplied by.
#[derive(Debug)]
struct Gate {
    /// `None`: it comes with the queries.
    product: Option<Linear>,
    form: OutputGate,
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

visit!(struct SelfAttention { projections, output, query_norm, key_norm, sinks, gate });
visit!(struct Gate { product });
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
    pub(crate) output_gate: Option<OutputGate>,
}

/// What the answer of each head is multiplied by, before the last product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputGate {
    /// The sigmoid of as many numbers again as a head's query has, from the product for it (Qwen3.5).
    InQuery,
    /// A function of a product of its own, which is called so.
    Own { name: &'static str, of: Gating, per_head: bool },
}

/// A gate's function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gating {
    Sigmoid,
    /// `ln(1 + eˣ)`, in fp32.
    Softplus,
}

impl Gating {
    /// `x`, `[.., heads, dim]`, times the function of `gate`, `[.., heads, dim or 1]`.
    fn forward(self, gate: &Array, x: &Array, backend: Backend) -> MlxResult<Array> {
        match self {
            Self::Sigmoid if gate.shape() == x.shape() => backend.sigmoid_gate(gate, x),
            Self::Sigmoid => x.multiply(sigmoid(gate)?),
            Self::Softplus => {
                let wide = gate.as_dtype(Dtype::Float32)?;
                x.multiply(logaddexp(wide, Array::from_f32(0.0))?.as_dtype(gate.dtype())?)
            }
        }
    }
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

impl OutputGate {
    fn gating(self) -> Gating {
        match self {
            Self::InQuery => Gating::Sigmoid,
            Self::Own { of, .. } => of,
        }
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
            output_gate: None,
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
        let in_query = options.output_gate == Some(OutputGate::InQuery);
        let mut linear =
            |name: &str, rows| weights.linear(&format!("{at}.{name}"), rows, dims.hidden, bias);
        let projections = if options.fused {
            Projections::Fused { all: linear("qkv_proj", query_rows + 2 * kv_rows)? }
        } else {
            Projections::Separate {
                query: linear("q_proj", if in_query { 2 * query_rows } else { query_rows })?,
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
        let gate = match options.output_gate {
            None => None,
            Some(form @ OutputGate::InQuery) => Some(Gate { product: None, form }),
            Some(form @ OutputGate::Own { name, per_head, .. }) => {
                let rows = if per_head { heads.count } else { query_rows };
                let name = format!("{at}.{name}");
                let product = Some(weights.linear(&name, rows, dims.hidden, false)?);
                Some(Gate { product, form })
            }
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
            gate,
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
        let Self { heads, spec, scale, soft_cap, rope, gate, .. } = self;
        let rope = rope.as_ref().map(Rope::settings);
        let gate = gate.as_ref().map(|it| format!(" {:?}", it.form)).unwrap_or_default();
        format!("{heads:?} {spec:?} {scale} {soft_cap:?} {rope:?}{gate}")
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

    /// Queries and keys, `[batch, tokens, heads · dim]`, as `[batch, heads, tokens, dim]` and rotated, where
    /// that is one operation.
    fn turned_heads(
        &self,
        queries: &Array,
        keys: &Array,
        rotation: Option<&Rotation>,
    ) -> MlxResult<Option<[Array; 2]>> {
        let Some(Rotation::Table { cos, sin, interleaved: false }) = rotation else {
            return Ok(None);
        };
        let norms = match (&self.query_norm, &self.key_norm) {
            (None, None) => None,
            (Some(query), Some(key)) if self.norm_place == NormPlace::Head => {
                match (query.plain(), key.plain()) {
                    (Some(query), Some(key)) => Some([query, key]),
                    _ => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        if queries.ndim() != 3 {
            return Ok(None);
        }
        self.backend.turned_heads([queries, keys], norms, [cos, sin], self.heads.dim as i32)
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
                let [query, key, value] = Linear::forward_each([query, key, value], x)?;
                (query, key, value)
            }
            Projections::Fused { all } => {
                let first = query_heads * head_dim;
                let second = first + kv_heads * head_dim;
                let parts = all.forward(x)?.split_at_indices(&[first, second], -1)?;
                (parts[0].clone(), parts[1].clone(), parts[2].clone())
            }
        };
        // [batch, tokens, heads, dim or 1]
        let (queries, gate) = match &self.gate {
            None => (queries, None),
            Some(Gate { product: Some(product), form }) => {
                let gate = product.forward(x)?.reshape(&[batch, tokens, query_heads, -1])?;
                (queries, Some((form.gating(), gate)))
            }
            Some(Gate { product: None, form }) => {
                let halves = queries.reshape(&[batch, tokens, query_heads, 2 * head_dim])?;
                let halves = halves.split_equal(2, -1)?;
                (halves[0].clone(), Some((form.gating(), halves[1].clone())))
            }
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
        let (queries, keys) = match self.turned_heads(&queries, &keys, rotation.as_ref())? {
            Some([queries, keys]) => (queries, keys),
            None => (
                placed(&queries, query_heads, self.query_norm.as_ref())?,
                placed(&keys, kv_heads, self.key_norm.as_ref())?,
            ),
        };
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
        let mixed = match gate {
            None => mixed,
            Some((gating, gate)) => {
                let mixed = mixed.reshape(&[batch, tokens, query_heads, head_dim])?;
                gating.forward(&gate, &mixed, self.backend)?
            }
        };
        let mixed = mixed.reshape(&[batch, tokens, query_heads * head_dim])?;
        Ok(self.output.forward(&mixed)?)
    }
}
