//! Mamba-2 (Dao & Gu, 2024): a short convolution, a recurrence with a fading per head, a gated norm.

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::{logaddexp, maximum, minimum, rsqrt, zeros_dtype},
};
use serde_json::Value;

use crate::{
    Result,
    activation::Activation,
    backend::Backend,
    config::Config,
    convolution::CausalConvolution,
    linear::Linear,
    parameters::{Tensor, visit},
    pass::BlockPass,
    recurrence::Tokens,
    weights::Weights,
};

/// A layer of such recurrences, one per head.
#[derive(Debug)]
pub(crate) struct Mamba2 {
    /// Makes gate, convolved inputs and steps in one product.
    input: Linear,
    convolution: CausalConvolution,
    /// `-e^A_log`, fp32: how fast a head forgets.
    decay: Tensor,
    /// Added to the steps, fp32.
    step_bias: Tensor,
    /// What a head's input is multiplied by beside the recurrence, fp32.
    skip: Tensor,
    norm: GatedNorm,
    output: Linear,
    /// One per row of the first product.
    multipliers: Option<Array>,
    options: MambaOptions,
}

/// What differs between the families' layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MambaOptions {
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// Groups of heads that share what is written and what is read by.
    pub(crate) groups: usize,
    /// Numbers per channel that a state keeps.
    pub(crate) state: usize,
    /// Tokens that the convolution sees.
    pub(crate) width: usize,
    pub(crate) bias: bool,
    pub(crate) output_bias: bool,
    pub(crate) convolution_bias: bool,
    pub(crate) activation: Activation,
    /// Between these a step is kept.
    pub(crate) step_limit: (f32, f32),
    pub(crate) eps: f32,
    pub(crate) gating: MambaGating,
    /// What gate, inputs, keys, queries and steps are multiplied by as they leave the product for them
    /// (Falcon-H1).
    pub(crate) multipliers: Option<[f32; 5]>,
}

/// What becomes of the outputs `y` and the gate. Norms are over each group of channels by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MambaGating {
    /// `norm(y · silu(gate))`.
    GateThenNorm,
    /// `norm(y) · silu(gate)`.
    NormThenGate,
    /// `y · silu(gate)`.
    Gate,
}

visit!(struct Mamba2 { input, convolution, decay, step_bias, skip, norm, output });

impl MambaOptions {
    /// Channels of all heads.
    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels that are convolved: those of the heads, and what each group writes and reads by.
    fn convolved(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    fn multipliers(&self, dtype: Dtype) -> MlxResult<Option<Array>> {
        let Some([gate, inputs, keys, queries, steps]) = self.multipliers else { return Ok(None) };
        let (inner, group) = (self.inner(), self.groups * self.state);
        let counts =
            [(gate, inner), (inputs, inner), (keys, group), (queries, group), (steps, self.heads)];
        let all: Vec<f32> = counts.iter().flat_map(|&(it, count)| vec![it; count]).collect();
        let all = Array::from_slice(&all, &[all.len() as i32]).as_dtype(dtype)?;
        all.eval()?;
        Ok(Some(all))
    }

    /// Refuses heads that the groups cannot share equally.
    pub(crate) fn check(self, config: &Config, key: &str) -> Result<Self> {
        if !self.heads.is_multiple_of(self.groups) {
            let what =
                format!("is {}, which does not divide the {} heads", self.groups, self.heads);
            return Err(config.error(key, what));
        }
        Ok(self)
    }
}

/// Two numbers, of which the greater may be infinite; absent, steps have no limit.
pub(crate) fn step_limit(config: &Config, key: &str) -> Result<(f32, f32)> {
    // As JSON has no infinity, transformers 5 writes it as an object.
    let number = |it: &Value| {
        let infinite = it.get("__float__").and_then(Value::as_str) == Some("Infinity");
        let number = it.as_f64().map(|it| it as f32);
        if infinite { Some(f32::INFINITY) } else { number }
    };
    match config.list(key, "a list of two numbers", number)?.as_deref() {
        None => Ok((0.0, f32::INFINITY)),
        Some(&[least, most]) if least <= most => Ok((least, most)),
        Some(_) => Err(config.error(key, "must be two numbers, the smaller one first")),
    }
}

impl Mamba2 {
    /// Loads the layer at `at` (`model.layers.3.mamba`).
    pub(crate) fn load(weights: &mut Weights, at: &str, options: MambaOptions) -> Result<Self> {
        let MambaOptions { hidden, heads, width, bias, output_bias, convolution_bias, .. } =
            options;
        let (inner, convolved) = (options.inner(), options.convolved());
        let name = |it: &str| format!("{at}.{it}");
        let same = |it: &Array| Ok(it.clone());
        let convolution =
            CausalConvolution::load(weights, &name("conv1d"), convolved, width, convolution_bias)?;
        Ok(Self {
            input: weights.linear(&name("in_proj"), inner + convolved + heads, hidden, bias)?,
            convolution,
            decay: weights.derived(&name("A_log"), &[heads], true, |it| it.exp()?.negative())?,
            step_bias: weights.derived(&name("dt_bias"), &[heads], true, same)?,
            skip: weights.derived(&name("D"), &[heads], true, same)?,
            norm: GatedNorm {
                weight: match options.gating {
                    MambaGating::Gate => None,
                    _ => Some(weights.tensor(&name("norm.weight"), &[inner])?),
                },
                gating: options.gating,
                groups: options.groups as i32,
                eps: options.eps,
                backend: weights.backend(),
            },
            output: weights.linear(&name("out_proj"), hidden, inner, output_bias)?,
            multipliers: options.multipliers(weights.dtype())?,
            options,
        })
    }

    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Array> {
        let (batch, count) = (x.dim(0), x.dim(1));
        let (inner, convolved) = (self.options.inner() as i32, self.options.convolved() as i32);
        let projected = self.input.forward(x)?;
        let projected = match &self.multipliers {
            None => projected,
            Some(multipliers) => projected.multiply(multipliers)?,
        };
        let parts = projected.split_at_indices(&[inner, inner + convolved], -1)?;
        let (window, memory) = match pass.state(layer)? {
            Some([window, memory]) => (Some(window.clone()), Some(memory.clone())),
            _ => (None, None),
        };
        // Behind the product, whose bias would reach real tokens; and so would the convolution's.
        let mixed = pass.without_padding(&parts[1])?;
        let activation = Some(self.options.activation);
        let (mixed, window) = self.convolution.forward(&mixed, window.as_ref(), activation)?;
        let mixed = pass.without_padding(&mixed)?;
        let (tokens, inputs) = self.tokens(&mixed, &parts[2])?;
        let memory = match memory {
            Some(memory) => memory,
            None => zeros_dtype(&self.memory(batch), Dtype::Float32)?,
        };
        let (outputs, memory) = self.norm.backend.recur(&tokens, &memory, pass.gradients)?;
        pass.set_state(layer, vec![window, memory])?;

        let skip = self.skip.array().expand_dims(-1)?;
        let outputs = outputs.add(inputs.multiply(skip)?)?.reshape(&[batch, count, inner])?;
        let normed = self.norm.forward(&outputs, &parts[0])?;
        Ok(self.output.forward(&normed)?)
    }

    /// The shape of the state: a matrix per head.
    fn memory(&self, batch: i32) -> [i32; 5] {
        let MambaOptions { heads, head_dim, groups, state, .. } = self.options;
        [batch, groups as i32, (heads / groups) as i32, state as i32, head_dim as i32]
    }

    /// By groups and heads, in fp32, and the heads' inputs.
    fn tokens(&self, mixed: &Array, steps: &Array) -> MlxResult<(Tokens, Array)> {
        let (batch, count) = (mixed.dim(0), mixed.dim(1));
        let [_, groups, heads, state, head_dim] = self.memory(batch);
        let heads = groups * heads;
        let inner = heads * head_dim;
        let parts = mixed
            .as_dtype(Dtype::Float32)?
            .split_at_indices(&[inner, inner + groups * state], -1)?;
        let by_head = |it: &Array, heads: i32, dim: i32| it.reshape(&[batch, count, heads, dim]);
        // softplus
        let steps = steps.as_dtype(Dtype::Float32)?.add(self.step_bias.array())?;
        let mut steps = logaddexp(steps, Array::from_f32(0.0))?;
        let (least, most) = self.options.step_limit;
        if least > 0.0 {
            steps = maximum(steps, Array::from_f32(least))?;
        }
        if most.is_finite() {
            steps = minimum(steps, Array::from_f32(most))?;
        }
        let inputs = by_head(&parts[0], heads, head_dim)?;
        let tokens = Tokens {
            queries: by_head(&parts[2], groups, state)?,
            keys: by_head(&parts[1], groups, state)?,
            values: inputs.multiply(by_head(&steps, heads, 1)?)?,
            log_decays: by_head(&steps.multiply(self.decay.array())?, heads, 1)?,
            rates: None,
            unit: false,
        };
        Ok((tokens, inputs))
    }
}

/// Outputs, their gate and the norm.
#[derive(Debug)]
struct GatedNorm {
    weight: Option<Tensor>,
    gating: MambaGating,
    groups: i32,
    eps: f32,
    backend: Backend,
}

visit!(struct GatedNorm { weight });

impl GatedNorm {
    /// `y` is fp32; returns the gate's dtype.
    fn forward(&self, y: &Array, gate: &Array) -> MlxResult<Array> {
        let [batch, count, inner] = [0, 1, 2].map(|axis| y.dim(axis));
        let gate32 = gate.as_dtype(Dtype::Float32)?;
        let gated = |y: &Array| Activation::Silu.gate(&gate32, y, self.backend);
        let Some(weight) = &self.weight else { return gated(y)?.as_dtype(gate.dtype()) };
        let gate_last = self.gating == MambaGating::NormThenGate;
        let y = if gate_last { y.clone() } else { gated(y)? };
        let y = y.reshape(&[batch, count, self.groups, inner / self.groups])?;
        let mean = y.square()?.mean_axis(-1, true)?.add(Array::from_f32(self.eps))?;
        let normed = y.multiply(rsqrt(mean)?)?.reshape(&[batch, count, inner])?;
        if gate_last {
            let normed = normed.multiply(weight.array().as_dtype(Dtype::Float32)?)?;
            return gated(&normed)?.as_dtype(gate.dtype());
        }
        normed.as_dtype(gate.dtype())?.multiply(weight.array())
    }
}
