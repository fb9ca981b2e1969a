//! The experts that a router picks from, run for the tokens that chose them.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{
        indexing::{Ellipsis, TryIndexOp},
        maximum, minimum, sigmoid,
    },
};

use crate::{
    Result, activation::Activation, backend::Backend, experts::Experts, parameters::visit,
    weights::Weights,
};

/// The experts that a router picks from.
#[derive(Debug)]
pub(crate) struct RoutedExperts {
    gate_up: GateUp,
    down: Experts,
    gate: Gate,
    backend: Backend,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
enum GateUp {
    Separate {
        gate: Experts,
        up: Experts,
    },
    /// One product whose rows are gate and up in turn.
    Fused {
        both: Experts,
    },
    /// One product of a row of gate, a row of up, and so on (gpt-oss).
    Interleaved {
        both: Experts,
    },
    /// No gate (Nemotron-H).
    Plain {
        up: Experts,
    },
}

/// What becomes of gate and up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gate {
    /// `activation(gate) · up`.
    Plain(Activation),
    /// `gate · σ(alpha · gate) · (up + 1)`, with gate at most `limit`, and up within `±limit` (gpt-oss).
    Clamped { alpha: f32, limit: f32 },
}

visit!(struct RoutedExperts { gate_up, down });
visit!(enum GateUp { Separate { gate, up }, Fused { both }, Interleaved { both }, Plain { up } });

/// What a family's checkpoints call the parts of experts, and how they lay them out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertNames {
    /// Where mlx-lm keeps all of them together.
    pub(crate) together: &'static str,
    /// Gate, up and down of a single expert, where each has tensors of its own.
    pub(crate) each: [&'static str; 3],
    /// Whether HF's tensors for all experts have inputs before outputs.
    pub(crate) transposed: bool,
    /// Whether these have gate and up row by row.
    pub(crate) interleaved: bool,
    /// The two products of all experts, where HF has them under other names and with an ending.
    pub(crate) halves: Option<[&'static str; 2]>,
}

impl ExpertNames {
    pub(crate) const USUAL: Self = Self {
        together: "switch_mlp",
        each: ["gate_proj", "up_proj", "down_proj"],
        transposed: false,
        interleaved: false,
        halves: None,
    };
}

impl RoutedExperts {
    /// Loads the experts at `at` (`model.layers.3.mlp`), from HF's one tensor per expert, from its two
    /// for all (`experts.gate_up_proj`, `experts.down_proj`), or from mlx-lm's stacked ones.
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        names: ExpertNames,
        [experts, inner, hidden]: [usize; 3],
        gate: Gate,
        bias: bool,
    ) -> Result<Self> {
        if let Some(halves) = names.halves {
            let [both, down] = halves.map(|it| format!("{at}.{it}"));
            if weights.has(&format!("{both}.weight")) {
                let both = weights.stacked(&both, [experts, 2 * inner, hidden])?;
                let down = weights.stacked(&down, [experts, hidden, inner])?;
                let gate_up = GateUp::Fused { both };
                return Ok(Self { gate_up, down, gate, backend: weights.backend() });
            }
        }
        let fused = weights.has_experts_of_all(at, "gate_up_proj");
        let mut stack = |name, index: usize, rows, columns| {
            weights.experts(at, names, (name, index), [experts, rows, columns], bias)
        };
        let gate_up = match (fused, names.interleaved) {
            (true, true) => {
                GateUp::Interleaved { both: stack("gate_up_proj", 0, 2 * inner, hidden)? }
            }
            (true, false) => GateUp::Fused { both: stack("gate_up_proj", 0, 2 * inner, hidden)? },
            (false, _) => GateUp::Separate {
                gate: stack("gate_proj", 0, inner, hidden)?,
                up: stack("up_proj", 1, inner, hidden)?,
            },
        };
        let down = stack("down_proj", 2, hidden, inner)?;
        Ok(Self { gate_up, down, gate, backend: weights.backend() })
    }

    /// Loads experts that are `down(activation(up(x)))` at `at`: HF's `experts.up_proj` and `down_proj`,
    /// whether for each or for all, or mlx-lm's `switch_mlp.fc1` and `fc2`.
    pub(crate) fn load_plain(
        weights: &mut Weights,
        at: &str,
        [experts, inner, hidden]: [usize; 3],
        activation: Activation,
    ) -> Result<Self> {
        let together = weights.has_part(&format!("{at}.switch_mlp"));
        let [up, down] = if together { ["fc1", "fc2"] } else { ["up_proj", "down_proj"] };
        let mut stack = |name, index, rows, columns| {
            let (names, of) = (ExpertNames::USUAL, (name, index));
            weights.experts(at, names, of, [experts, rows, columns], false)
        };
        Ok(Self {
            gate_up: GateUp::Plain { up: stack(up, 1, inner, hidden)? },
            down: stack(down, 2, hidden, inner)?,
            gate: Gate::Plain(activation),
            backend: weights.backend(),
        })
    }

    /// What the `chosen` experts make of `hidden`, `[batch, tokens, hidden]`, times a share each, added up:
    /// both `[batch, tokens, chosen]` (Llama 4).
    pub(crate) fn forward_shares(
        &self,
        hidden: &Array,
        chosen: &Array,
        shares: &Array,
    ) -> Result<Array> {
        let shares = shares.as_dtype(hidden.dtype())?.expand_dims(-1)?;
        let x = hidden.expand_dims(-2)?.multiply(shares)?.expand_dims(-2)?;
        let outputs = self.down.forward(&self.inner(&x, chosen)?, chosen)?;
        Ok(outputs.squeeze_axes(&[-2])?.sum_axis(-2, false)?)
    }

    /// What the `chosen` experts make of `hidden`, `[batch, tokens, hidden]`, each times its share:
    /// both `[batch, tokens, chosen]`.
    pub(crate) fn forward(&self, hidden: &Array, chosen: &Array, shares: &Array) -> Result<Array> {
        let shares = shares.as_dtype(hidden.dtype())?;
        let inner = match self.gate(hidden, chosen)? {
            Some(inner) => match self.down.mixed(&inner, chosen, &shares)? {
                Some(mixed) => return Ok(mixed),
                None => inner.expand_dims(-2)?,
            },
            None => self.inner(&hidden.expand_dims_axes(&[-2, -3])?, chosen)?,
        };
        let outputs = self.down.forward(&inner, chosen)?.squeeze_axes(&[-2])?;
        Ok(outputs.multiply(shares.expand_dims(-1)?)?.sum_axis(-2, false)?)
    }

    /// What the last product is given, `[batch, tokens, chosen, inner]`, of `hidden`, `[batch, tokens, hidden]`,
    /// where that is one operation.
    fn gate(&self, hidden: &Array, chosen: &Array) -> MlxResult<Option<Array>> {
        match (&self.gate_up, self.gate) {
            (GateUp::Separate { gate, up }, Gate::Plain(Activation::Silu)) => {
                Experts::gate([gate, up], hidden, chosen)
            }
            (GateUp::Fused { both }, Gate::Plain(Activation::Silu)) => {
                Experts::gate([both], hidden, chosen)
            }
            _ => Ok(None),
        }
    }

    /// The same of `x`, `[batch, tokens, 1 or chosen, 1, hidden]`, as `[batch, tokens, chosen, 1, inner]`.
    fn inner(&self, x: &Array, chosen: &Array) -> MlxResult<Array> {
        let gated = |gate: &Array, up: &Array| self.gate.forward(gate, up, self.backend);
        match &self.gate_up {
            GateUp::Separate { gate, up } => {
                gated(&gate.forward(x, chosen)?, &up.forward(x, chosen)?)
            }
            GateUp::Fused { both } => {
                let halves = both.forward(x, chosen)?.split_equal(2, -1)?;
                gated(&halves[0], &halves[1])
            }
            GateUp::Interleaved { both } => {
                let both = both.forward(x, chosen)?;
                let half = both.dim(-1) / 2;
                let pairs = both.reshape(&[&both.shape()[..4], &[half, 2]].concat())?;
                let of = |index: i32| pairs.try_index((Ellipsis, index));
                gated(&of(0)?, &of(1)?)
            }
            GateUp::Plain { up } => self.gate.activate(&up.forward(x, chosen)?, self.backend),
        }
    }
}

impl Gate {
    /// What experts without a gate do.
    fn activate(self, x: &Array, backend: Backend) -> MlxResult<Array> {
        match self {
            Self::Plain(activation) => activation.forward(x),
            Self::Clamped { .. } => self.forward(x, x, backend),
        }
    }

    fn forward(self, gate: &Array, up: &Array, backend: Backend) -> MlxResult<Array> {
        let (alpha, limit) = match self {
            Self::Plain(activation) => return activation.gate(gate, up, backend),
            Self::Clamped { alpha, limit } => (alpha, limit),
        };
        let number = |it: f32| Array::from_f32(it).as_dtype(gate.dtype());
        let gate = minimum(gate, number(limit)?)?;
        let up = maximum(minimum(up, number(limit)?)?, number(-limit)?)?;
        let glu = gate.multiply(sigmoid(gate.multiply(number(alpha)?)?)?)?;
        glu.multiply(up.add(number(1.0)?)?)
    }
}
