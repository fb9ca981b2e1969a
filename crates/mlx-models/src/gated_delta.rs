//! The token mixer of Qwen3-Next and Qwen3.5: a short convolution, the gated delta rule, a gated norm.

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::{concatenate, logaddexp, sigmoid, zeros_dtype},
};

use crate::{
    Result,
    activation::Activation,
    backend::Backend,
    convolution::CausalConvolution,
    linear::Linear,
    norm::{NormWeight, RmsNorm},
    parameters::{Tensor, visit},
    pass::BlockPass,
    recurrence::Tokens,
    weights::Weights,
};

/// A layer of gated delta rules, one per value head.
#[derive(Debug)]
pub(crate) struct GatedDelta {
    projections: Projections,
    convolution: CausalConvolution,
    /// `-e^A_log`, fp32: how fast a head forgets.
    decay: Tensor,
    /// Added to a token's own share in that, fp32.
    decay_bias: Tensor,
    norm: RmsNorm,
    output: Linear,
    heads: DeltaHeads,
    activation: Activation,
    backend: Backend,
}

/// The heads of such a layer, and what differs between checkpoints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeltaHeads {
    pub(crate) keys: usize,
    /// A multiple of `keys`: consecutive ones share a key head.
    pub(crate) values: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    /// Tokens that the convolution sees.
    pub(crate) width: usize,
    /// Whether two products make all inputs, in order of key heads (Qwen3-Next), or four (Qwen3.5).
    pub(crate) fused: bool,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
enum Projections {
    Separate {
        /// Queries, keys and values.
        mixed: Linear,
        gate: Linear,
        rate: Linear,
        decay: Linear,
    },
    /// By key head: its query, its key, its values and their gates; its rates and decays.
    Fused { mixed_gate: Linear, rate_decay: Linear },
}

/// What the layer's products make of its input, `[batch, tokens, ..]` each.
struct Inputs {
    mixed: Array,
    gate: Array,
    rate: Array,
    decay: Array,
}

visit!(struct GatedDelta { projections, convolution, decay, decay_bias, norm, output });
visit!(enum Projections {
    Separate { mixed, gate, rate, decay },
    Fused { mixed_gate, rate_decay },
});

impl DeltaHeads {
    fn key_width(self) -> usize {
        self.keys * self.key_dim
    }

    fn value_width(self) -> usize {
        self.values * self.value_dim
    }

    /// Channels of queries, keys and values together.
    fn mixed_width(self) -> usize {
        2 * self.key_width() + self.value_width()
    }
}

impl GatedDelta {
    /// Loads the layer at `at` (`model.layers.3.linear_attn`).
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        (hidden, eps): (usize, f32),
        heads: DeltaHeads,
        activation: Activation,
    ) -> Result<Self> {
        let (mixed, value, each) = (heads.mixed_width(), heads.value_width(), heads.values);
        let mut product =
            |name: &str, rows| weights.linear(&format!("{at}.{name}"), rows, hidden, false);
        let projections = if heads.fused {
            Projections::Fused {
                mixed_gate: product("in_proj_qkvz", mixed + value)?,
                rate_decay: product("in_proj_ba", 2 * each)?,
            }
        } else {
            Projections::Separate {
                mixed: product("in_proj_qkv", mixed)?,
                gate: product("in_proj_z", value)?,
                rate: product("in_proj_b", each)?,
                decay: product("in_proj_a", each)?,
            }
        };
        let name = |it: &str| format!("{at}.{it}");
        let (plain, same) = (NormWeight::Plain, |it: &Array| Ok(it.clone()));
        Ok(Self {
            projections,
            convolution: CausalConvolution::load(
                weights,
                &name("conv1d"),
                mixed,
                heads.width,
                false,
            )?,
            decay: weights.derived(&name("A_log"), &[each], true, |it| it.exp()?.negative())?,
            decay_bias: weights.derived(&name("dt_bias"), &[each], true, same)?,
            norm: weights.norm(&name("norm"), heads.value_dim, eps, plain)?,
            output: weights.linear(&name("out_proj"), hidden, value, false)?,
            heads,
            activation,
            backend: weights.backend(),
        })
    }

    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Array> {
        let (batch, count) = (x.dim(0), x.dim(1));
        let inputs = self.projections.forward(&pass.without_padding(x)?, self.heads)?;
        let (window, memory) = match pass.state(layer)? {
            Some([window, memory]) => (Some(window.clone()), Some(memory.clone())),
            _ => (None, None),
        };
        let (mixed, window) =
            self.convolution.forward(&inputs.mixed, window.as_ref(), Some(self.activation))?;
        let tokens = self.tokens(&mixed, &inputs)?;
        let memory = match memory {
            Some(memory) => memory,
            None => zeros_dtype(&self.memory(batch), Dtype::Float32)?,
        };
        let (outputs, memory) = self.backend.recur(&tokens, &memory, pass.gradients)?;
        pass.set_state(layer, vec![window, memory])?;

        let [values, value_dim] = [self.heads.values, self.heads.value_dim].map(|it| it as i32);
        let outputs = outputs.as_dtype(x.dtype())?;
        let gate = inputs.gate.reshape(&[batch, count, values, value_dim])?;
        let gated = Activation::Silu.gate(&gate, &self.norm.forward(&outputs)?, self.backend)?;
        Ok(self.output.forward(&gated.reshape(&[batch, count, values * value_dim])?)?)
    }

    /// The shape of the state: a matrix per value head.
    fn memory(&self, batch: i32) -> [i32; 5] {
        let DeltaHeads { keys, values, key_dim, value_dim, .. } = self.heads;
        [batch, keys as i32, (values / keys) as i32, key_dim as i32, value_dim as i32]
    }

    /// By heads, in fp32.
    fn tokens(&self, mixed: &Array, inputs: &Inputs) -> MlxResult<Tokens> {
        let (batch, count) = (mixed.dim(0), mixed.dim(1));
        let [_, keys, groups, key_dim, value_dim] = self.memory(batch);
        let width = keys * key_dim;
        let parts = mixed.as_dtype(Dtype::Float32)?.split_at_indices(&[width, 2 * width], -1)?;
        let by_head = |it: &Array, heads: i32, dim: i32| it.reshape(&[batch, count, heads, dim]);
        let per_token = |it: &Array| by_head(it, keys * groups, 1);
        // softplus
        let share = inputs.decay.as_dtype(Dtype::Float32)?.add(self.decay_bias.array())?;
        let share = logaddexp(share, Array::from_f32(0.0))?;
        Ok(Tokens {
            queries: by_head(&parts[0], keys, key_dim)?,
            keys: by_head(&parts[1], keys, key_dim)?,
            values: by_head(&parts[2], keys * groups, value_dim)?,
            log_decays: per_token(&share.multiply(self.decay.array())?)?,
            rates: Some(per_token(&sigmoid(&inputs.rate)?.as_dtype(Dtype::Float32)?)?),
            unit: true,
        })
    }
}

impl Projections {
    fn forward(&self, x: &Array, heads: DeltaHeads) -> MlxResult<Inputs> {
        match self {
            Self::Separate { mixed, gate, rate, decay } => {
                let [mixed, gate, rate, decay] =
                    Linear::forward_each([mixed, gate, rate, decay], x)?;
                Ok(Inputs { mixed, gate, rate, decay })
            }
            Self::Fused { mixed_gate, rate_decay } => {
                let [batch, count] = [0, 1].map(|axis| x.dim(axis));
                let keys = heads.keys as i32;
                let by_head = |it: &Array| it.reshape(&[batch, count, keys, -1]);
                let flat = |it: &Array| it.reshape(&[batch, count, -1]);
                let key = heads.key_dim as i32;
                let value = (heads.value_width() / heads.keys) as i32;
                let parts = by_head(&mixed_gate.forward(x)?)?
                    .split_at_indices(&[key, 2 * key, 2 * key + value], -1)?;
                let small = by_head(&rate_decay.forward(x)?)?.split_equal(2, -1)?;
                let mixed = parts[..3].iter().map(flat).collect::<MlxResult<Vec<_>>>()?;
                Ok(Inputs {
                    mixed: concatenate(&mixed, -1)?,
                    gate: flat(&parts[3])?,
                    rate: flat(&small[0])?,
                    decay: flat(&small[1])?,
                })
            }
        }
    }
}
