//! Feed-forward layers: gated, and plain.

use mlx_rs::Array;

use crate::{
    Result, activation::Activation, backend::Backend, linear::Linear, parameters::visit,
    weights::Weights,
};

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
    Fused {
        both: Linear,
    },
}

visit!(struct GatedMlp { gate_up, down });
visit!(enum GateUp { Separate { gate, up }, Fused { both } });

/// What differs between the families' feed-forward layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlpOptions {
    /// Rows of gate and up.
    pub(crate) inner: usize,
    pub(crate) activation: Activation,
    /// A bias on all products.
    pub(crate) bias: bool,
    pub(crate) fused: bool,
}

/// What a family's checkpoints call the products of a gated layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlpNames {
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// Gate and up, where one product makes both.
    pub(crate) both: &'static str,
}

impl MlpNames {
    pub(crate) const USUAL: Self =
        Self { gate: "gate_proj", up: "up_proj", down: "down_proj", both: "gate_up_proj" };
}

impl MlpOptions {
    /// Three products without biases.
    pub(crate) fn new(inner: usize, activation: Activation) -> Self {
        Self { inner, activation, bias: false, fused: false }
    }
}

/// `out(activation(in(x)))`.
#[derive(Debug)]
pub(crate) struct PlainMlp {
    input: Linear,
    output: Linear,
    activation: Activation,
}

visit!(struct PlainMlp { input, output });

impl PlainMlp {
    /// Loads the layer at `at` (`model.layers.3.mlp`), whose products are named `names`.
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        hidden: usize,
        [input, output]: [&str; 2],
        options: MlpOptions,
    ) -> Result<Self> {
        let MlpOptions { inner, activation, bias, .. } = options;
        let input = weights.linear(&format!("{at}.{input}"), inner, hidden, bias)?;
        let output = weights.linear(&format!("{at}.{output}"), hidden, inner, bias)?;
        Ok(Self { input, output, activation })
    }

    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        Ok(self.output.forward(&self.activation.forward(&self.input.forward(x)?)?)?)
    }
}

impl GatedMlp {
    /// Loads the layer at `at` (`model.layers.3.mlp`), under the usual names.
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        hidden: usize,
        options: MlpOptions,
    ) -> Result<Self> {
        Self::load_named(weights, at, hidden, MlpNames::USUAL, options)
    }

    /// As [`load`](Self::load), under a family's own names.
    pub(crate) fn load_named(
        weights: &mut Weights,
        at: &str,
        hidden: usize,
        names: MlpNames,
        options: MlpOptions,
    ) -> Result<Self> {
        let MlpOptions { inner, activation, bias, fused } = options;
        let mut linear =
            |name, rows, columns| weights.linear(&format!("{at}.{name}"), rows, columns, bias);
        let gate_up = if fused {
            GateUp::Fused { both: linear(names.both, 2 * inner, hidden)? }
        } else {
            GateUp::Separate {
                gate: linear(names.gate, inner, hidden)?,
                up: linear(names.up, inner, hidden)?,
            }
        };
        let down = linear(names.down, hidden, inner)?;
        Ok(Self { gate_up, down, activation, backend: weights.backend() })
    }

    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let (gate, up) = match &self.gate_up {
            GateUp::Separate { gate, up } => {
                if self.activation == Activation::Silu
                    && let Some(gated) = Linear::gated(gate, up, x)?
                {
                    return Ok(self.down.forward(&gated)?);
                }
                let [gate, up] = Linear::forward_each([gate, up], x)?;
                (gate, up)
            }
            GateUp::Fused { both } => {
                let halves = both.forward(x)?.split_equal(2, -1)?;
                (halves[0].clone(), halves[1].clone())
            }
        };
        Ok(self.down.forward(&self.activation.gate(&gate, &up, self.backend)?)?)
    }
}
