//! Kimi Delta Attention (*Kimi Linear*, 2025): the gated delta rule with a fading for each channel of a key,
//! behind short convolutions of queries, keys and values, and before a gated norm.

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::{logaddexp, rsqrt, sigmoid, zeros_dtype},
};

use crate::{
    Result,
    activation::Activation,
    backend::Backend,
    convolution::CausalConvolution,
    linear::Linear,
    parameters::{Tensor, visit},
    pass::BlockPass,
    recurrence::Tokens,
    weights::Weights,
};

/// A layer of such rules, one per head.
#[derive(Debug)]
pub(crate) struct KimiDelta {
    query: Convolved,
    key: Convolved,
    value: Convolved,
    /// A token's share in the fading, through as many numbers as a head has.
    forget: LowRank,
    /// `-e^A_log`, fp32 `[heads, 1]`: how fast a head forgets.
    decay: Tensor,
    /// Added to a token's own share, fp32.
    decay_bias: Tensor,
    rate: Linear,
    gate: LowRank,
    /// `[head dim]`, fp32.
    norm: Tensor,
    output: Linear,
    options: KimiDeltaOptions,
    backend: Backend,
}

/// The sizes of such a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KimiDeltaOptions {
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// Tokens that the convolutions see.
    pub(crate) width: usize,
    pub(crate) activation: Activation,
    pub(crate) eps: f32,
}

/// A product by way of fewer numbers.
#[derive(Debug)]
struct LowRank {
    down: Linear,
    up: Linear,
}

/// A product, and a convolution of what it makes.
#[derive(Debug)]
struct Convolved {
    product: Linear,
    convolution: CausalConvolution,
}

visit!(struct KimiDelta {
    query,
    key,
    value,
    forget,
    decay,
    decay_bias,
    rate,
    gate,
    norm,
    output,
});
visit!(struct LowRank { down, up });
visit!(struct Convolved { product, convolution });

impl LowRank {
    fn forward(&self, x: &Array) -> MlxResult<Array> {
        self.up.forward(&self.down.forward(x)?)
    }
}

impl Convolved {
    /// Loads the part called `name` (`q`) of the layer at `at`, under HF's name or mlx-lm's.
    fn load(
        weights: &mut Weights,
        at: &str,
        name: &str,
        options: KimiDeltaOptions,
    ) -> Result<Self> {
        let width = options.heads * options.head_dim;
        let mlx = format!("{at}.{name}_conv.conv");
        let is_mlx = weights.has(&format!("{mlx}.weight"));
        let convolution = if is_mlx { mlx } else { format!("{at}.{name}_conv1d") };
        let product = format!("{at}.{name}_proj");
        Ok(Self {
            product: weights.linear(&product, width, options.hidden, false)?,
            convolution: CausalConvolution::load(
                weights,
                &convolution,
                width,
                options.width,
                false,
            )?,
        })
    }

    fn forward(
        &self,
        x: &Array,
        before: Option<&Array>,
        activation: Activation,
    ) -> MlxResult<(Array, Array)> {
        self.convolution.forward(&self.product.forward(x)?, before, Some(activation))
    }
}

impl KimiDelta {
    /// Loads the layer at `at` (`model.layers.3.self_attn`).
    pub(crate) fn load(weights: &mut Weights, at: &str, options: KimiDeltaOptions) -> Result<Self> {
        let KimiDeltaOptions { hidden, heads, head_dim, .. } = options;
        let width = heads * head_dim;
        let name = |it: &str| format!("{at}.{it}");
        let decay = name("A_log");
        // The published files have axes of 1 around the heads.
        let shape = match weights.shape(&decay) {
            Some(&[_, _, _, _]) => vec![1, 1, heads, 1],
            _ => vec![heads],
        };
        let same = |it: &Array| Ok(it.clone());
        Ok(Self {
            query: Convolved::load(weights, at, "q", options)?,
            key: Convolved::load(weights, at, "k", options)?,
            value: Convolved::load(weights, at, "v", options)?,
            forget: LowRank {
                down: weights.linear(&name("f_a_proj"), head_dim, hidden, false)?,
                up: weights.linear(&name("f_b_proj"), width, head_dim, false)?,
            },
            decay: weights
                .derived(&decay, &shape, true, |it| it.exp()?.negative()?.reshape(&[-1, 1]))?,
            decay_bias: weights.derived(&name("dt_bias"), &[width], true, same)?,
            rate: weights.linear(&name("b_proj"), heads, hidden, false)?,
            gate: LowRank {
                down: weights.linear(&name("g_a_proj"), head_dim, hidden, false)?,
                up: weights.linear(&name("g_b_proj"), width, head_dim, false)?,
            },
            norm: weights.derived(&name("o_norm.weight"), &[head_dim], true, same)?,
            output: weights.linear(&name("o_proj"), hidden, width, false)?,
            options,
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
        let [heads, dim] = [self.options.heads, self.options.head_dim].map(|it| it as i32);
        let real = pass.without_padding(x)?;
        let state = pass.state(layer)?.map(<[Array]>::to_vec).unwrap_or_default();
        let before = |at: usize| state.get(at);
        let convolved = |it: &Convolved, at| it.forward(&real, before(at), self.options.activation);
        let (queries, of_queries) = convolved(&self.query, 0)?;
        let (keys, of_keys) = convolved(&self.key, 1)?;
        let (values, of_values) = convolved(&self.value, 2)?;
        let tokens = self.tokens([queries, keys, values], &real)?;
        let memory = match before(3) {
            Some(memory) => memory.clone(),
            None => zeros_dtype(&[batch, heads, 1, dim, dim], Dtype::Float32)?,
        };
        let (outputs, memory) = self.backend.recur(&tokens, &memory, pass.gradients)?;
        pass.set_state(layer, vec![of_queries, of_keys, of_values, memory])?;

        let mean = outputs.square()?.mean_axis(-1, true)?;
        let root = rsqrt(mean.add(Array::from_f32(self.options.eps))?)?;
        let normed = outputs.multiply(root)?.multiply(self.norm.array())?;
        let gate = self.gate.forward(x)?.as_dtype(Dtype::Float32)?;
        let gate = gate.reshape(&[batch, count, heads, dim])?;
        let gated = self.backend.sigmoid_gate(&gate, &normed)?.as_dtype(x.dtype())?;
        Ok(self.output.forward(&gated.reshape(&[batch, count, heads * dim])?)?)
    }

    /// By heads, in fp32.
    fn tokens(&self, mixed: [Array; 3], x: &Array) -> MlxResult<Tokens> {
        let (batch, count) = (x.dim(0), x.dim(1));
        let [heads, dim] = [self.options.heads, self.options.head_dim].map(|it| it as i32);
        let by_head = |it: &Array, dim: i32| {
            it.as_dtype(Dtype::Float32)?.reshape(&[batch, count, heads, dim])
        };
        let [queries, keys, values] = mixed;
        let share = self.forget.forward(x)?;
        let share = share.as_dtype(Dtype::Float32)?.add(self.decay_bias.array())?;
        // softplus
        let share = logaddexp(share, Array::from_f32(0.0))?;
        let share = share.reshape(&[batch, count, heads, dim])?.multiply(self.decay.array())?;
        Ok(Tokens {
            queries: by_head(&queries, dim)?,
            keys: by_head(&keys, dim)?,
            values: by_head(&values, dim)?,
            log_decays: by_head(&share, dim)?,
            rates: Some(by_head(&sigmoid(self.rate.forward(x)?)?, 1)?),
            unit: true,
        })
    }
}
