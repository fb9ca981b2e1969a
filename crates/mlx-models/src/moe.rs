//! A mixture of experts: a router, the experts, and an expert that every token is fed to.

use mlx_rs::{Array, Dtype, error::Result as MlxResult, ops::sigmoid};

use crate::{
    Result,
    activation::Activation,
    backend::Backend,
    linear::Linear,
    mlp::{GatedMlp, MlpOptions},
    parameters::{Tensor, visit},
    routed_experts::{ExpertNames, Gate, RoutedExperts},
    routing::Routing,
    weights::Weights,
};

/// Each token is fed to the experts that the router picks, and to the shared one.
#[derive(Debug)]
pub(crate) struct MixtureOfExperts {
    router: Router,
    experts: RoutedExperts,
    shared: Option<SharedExpert>,
}

/// Which experts a token is fed to, and how much each counts.
#[derive(Debug)]
pub(crate) struct Router {
    projection: Linear,
    /// Added to the scores where experts are chosen, `[experts]` or `[1, experts]`.
    correction: Option<Tensor>,
    routing: Routing,
    backend: Backend,
}

/// An expert that every token is fed to.
#[derive(Debug)]
struct SharedExpert {
    mlp: GatedMlp,
    /// Its share, `σ(gate(x))`; 1 without.
    gate: Option<Linear>,
}

visit!(struct MixtureOfExperts { router, experts, shared });
visit!(struct Router { projection, correction });
visit!(struct SharedExpert { mlp, gate });

/// What a mixture consists of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MixtureOptions {
    pub(crate) hidden: usize,
    /// Rows of each expert's gate and up.
    pub(crate) inner: usize,
    pub(crate) experts: usize,
    pub(crate) activation: Activation,
    /// Biases on the experts' products.
    pub(crate) expert_bias: bool,
    pub(crate) routing: Routing,
    pub(crate) router_bias: bool,
    /// Whether `e_score_correction_bias` takes part in the choice.
    pub(crate) correction: bool,
    pub(crate) shared: Option<SharedOptions>,
}

/// What a shared expert is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedOptions {
    /// Rows of its gate and up.
    pub(crate) inner: usize,
    /// Whether it has a share of its own.
    pub(crate) gated: bool,
    /// Whether its products have biases.
    pub(crate) bias: bool,
}

/// What a family's checkpoints call the parts of a mixture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MixtureNames {
    pub(crate) router: &'static str,
    /// What is added to the scores where experts are chosen.
    pub(crate) correction: &'static str,
    pub(crate) correction_axes: usize,
    pub(crate) experts: ExpertNames,
}

impl MixtureNames {
    /// Those of Qwen, DeepSeek and GLM.
    pub(crate) const USUAL: Self = Self {
        router: "gate",
        correction: "gate.e_score_correction_bias",
        correction_axes: 1,
        experts: ExpertNames::USUAL,
    };

    /// Those of Mixtral and MiniMax.
    pub(crate) const NUMBERED: Self = Self {
        correction: "e_score_correction_bias",
        experts: ExpertNames { each: ["w1", "w3", "w2"], ..ExpertNames::USUAL },
        ..Self::USUAL
    };
}

impl MixtureOfExperts {
    /// Loads the layer at `at` (`model.layers.3.mlp`), under the usual names.
    pub(crate) fn load(weights: &mut Weights, at: &str, options: MixtureOptions) -> Result<Self> {
        let gate = Gate::Plain(options.activation);
        Self::load_named(weights, at, MixtureNames::USUAL, gate, options)
    }

    /// As [`load`](Self::load), under a family's own names, and with its own gate.
    pub(crate) fn load_named(
        weights: &mut Weights,
        at: &str,
        names: MixtureNames,
        gate: Gate,
        options: MixtureOptions,
    ) -> Result<Self> {
        let MixtureOptions { hidden, inner, experts: count, expert_bias, .. } = options;
        let sizes = [count, inner, hidden];
        let experts = RoutedExperts::load(weights, at, names.experts, sizes, gate, expert_bias)?;
        let router = format!("{at}.{}", names.router);
        let router = Router {
            projection: weights.linear(&router, count, hidden, options.router_bias)?,
            correction: if options.correction {
                let name = format!("{at}.{}", names.correction);
                let shape = if names.correction_axes == 2 { vec![1, count] } else { vec![count] };
                Some(weights.derived(&name, &shape, true, |it| Ok(it.clone()))?)
            } else {
                None
            },
            routing: options.routing,
            backend: weights.backend(),
        };
        let shared = options.shared.map(|it| SharedExpert::load(weights, at, it, options));
        Ok(Self { router, experts, shared: shared.transpose()? })
    }

    /// The same, and `mlp` for every token.
    pub(crate) fn beside(self, mlp: GatedMlp) -> Self {
        Self { shared: Some(SharedExpert { mlp, gate: None }), ..self }
    }

    pub(crate) fn forward(&self, hidden: &Array) -> Result<Array> {
        let (chosen, shares) = self.router.forward(hidden)?;
        let routed = self.experts.forward(hidden, &chosen, &shares)?;
        match &self.shared {
            None => Ok(routed),
            Some(shared) => Ok(routed.add(shared.forward(hidden)?)?),
        }
    }
}

impl Router {
    /// `[batch, tokens, hidden]` to the chosen experts, u32, and their shares, fp32, both
    /// `[batch, tokens, chosen]` in no particular order.
    fn forward(&self, x: &Array) -> MlxResult<(Array, Array)> {
        let logits = self.projection.forward(x)?.as_dtype(Dtype::Float32)?;
        let correction = self.correction.as_ref().map(Tensor::array);
        self.backend.route(&self.routing, logits, correction)
    }
}

impl SharedExpert {
    /// Under the names of DeepSeek V3 (`shared_experts`), or of Qwen2-MoE, where it has a share
    /// (`shared_expert`, `shared_expert_gate`).
    fn load(
        weights: &mut Weights,
        at: &str,
        shared: SharedOptions,
        options: MixtureOptions,
    ) -> Result<Self> {
        let name = if shared.gated { "shared_expert" } else { "shared_experts" };
        let mlp =
            MlpOptions { bias: shared.bias, ..MlpOptions::new(shared.inner, options.activation) };
        let mlp = GatedMlp::load(weights, &format!("{at}.{name}"), options.hidden, mlp)?;
        let gate = if shared.gated {
            Some(weights.linear(&format!("{at}.shared_expert_gate"), 1, options.hidden, false)?)
        } else {
            None
        };
        Ok(Self { mlp, gate })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let y = self.mlp.forward(x)?;
        match &self.gate {
            None => Ok(y),
            Some(gate) => Ok(y.multiply(sigmoid(gate.forward(x)?)?)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        config::Config,
        routing::{
            Scores,
            tests::{naive, noise, sigma, values},
        },
    };

    const TOKENS: usize = 5;
    const HIDDEN: usize = 8;
    const EXPERTS: usize = 12;
    const INNER: usize = 6;

    /// A mixture with everything it can have, from a checkpoint in either layout.
    fn mixture(
        options: MixtureOptions,
        stacked: bool,
    ) -> (MixtureOfExperts, HashMap<String, Array>) {
        let mut tensors = HashMap::new();
        let mut seed = 100;
        let mut put = |name: String, shape: &[i32]| {
            seed += 1;
            tensors.insert(name, noise(seed, shape));
        };
        let [hidden, inner, experts] = [HIDDEN, INNER, EXPERTS].map(|it| it as i32);
        put("mlp.gate.weight".into(), &[experts, hidden]);
        put("mlp.gate.bias".into(), &[experts]);
        put("mlp.gate.e_score_correction_bias".into(), &[experts]);
        put("mlp.shared_expert_gate.weight".into(), &[1, hidden]);
        for (name, rows, columns) in
            [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)]
        {
            put(format!("mlp.shared_expert.{name}.weight"), &[rows, columns]);
            for expert in 0..experts {
                put(format!("mlp.experts.{expert}.{name}.weight"), &[rows, columns]);
                put(format!("mlp.experts.{expert}.{name}.bias"), &[rows]);
            }
        }
        let mut file = tensors.clone();
        if stacked {
            for name in ["gate_proj", "up_proj", "down_proj"] {
                for ending in ["weight", "bias"] {
                    let each: Vec<Array> = (0..experts)
                        .map(|it| file.remove(&format!("mlp.experts.{it}.{name}.{ending}")))
                        .collect::<Option<_>>()
                        .unwrap();
                    let together = mlx_rs::ops::stack(&each, 0).unwrap();
                    file.insert(format!("mlp.switch_mlp.{name}.{ending}"), together);
                }
            }
        }
        let config = Config::parse("config.json", b"{}").unwrap();
        let mut weights =
            Weights::new("a test".into(), file, &config, Some(Dtype::Float32)).unwrap();
        let mixture = MixtureOfExperts::load(&mut weights, "mlp", options).unwrap();
        weights.finish().unwrap();
        (mixture, tensors)
    }

    /// `W x + b` on the host.
    fn product(tensors: &HashMap<String, Array>, at: &str, x: &[f32]) -> Vec<f32> {
        let weight = values(&tensors[&format!("{at}.weight")]);
        let bias = tensors.get(&format!("{at}.bias")).map(values);
        let dot = |row: &[f32]| -> f32 { row.iter().zip(x).map(|(a, b)| a * b).sum() };
        let rows = weight.chunks(x.len()).map(dot).enumerate();
        rows.map(|(index, it)| it + bias.as_ref().map_or(0.0, |bias| bias[index])).collect()
    }

    #[test]
    fn a_mixture_is_the_sum_of_its_experts() {
        for stacked in [false, true] {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let routing = Routing {
                    normalise: Some(1e-20),
                    scale: 2.5,
                    ..Routing::new(Scores::Sigmoid, 3)
                };
                let (mixture, tensors) = mixture(
                    MixtureOptions {
                        hidden: HIDDEN,
                        inner: INNER,
                        experts: EXPERTS,
                        activation,
                        expert_bias: true,
                        routing,
                        router_bias: true,
                        correction: true,
                        shared: Some(SharedOptions { inner: INNER, gated: true, bias: false }),
                    },
                    stacked,
                );
                let activate = |x: f32| match activation {
                    Activation::Silu => x * sigma(x),
                    _ => 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x.powi(3))).tanh()),
                };
                let mlp = |at: &str, x: &[f32]| {
                    let gate = product(&tensors, &format!("{at}.gate_proj"), x);
                    let up = product(&tensors, &format!("{at}.up_proj"), x);
                    let inner: Vec<f32> =
                        gate.iter().zip(&up).map(|(&gate, up)| activate(gate) * up).collect();
                    product(&tensors, &format!("{at}.down_proj"), &inner)
                };
                let x = noise(1, &[1, TOKENS as i32, HIDDEN as i32]);
                let ours = values(&mixture.forward(&x).unwrap());
                let correction = values(&tensors["mlp.gate.e_score_correction_bias"]);
                for (x, ours) in values(&x).chunks(HIDDEN).zip(ours.chunks(HIDDEN)) {
                    let share = sigma(product(&tensors, "mlp.shared_expert_gate", x)[0]);
                    let mut theirs: Vec<f32> =
                        mlp("mlp.shared_expert", x).iter().map(|it| share * it).collect();
                    let logits = product(&tensors, "mlp.gate", x);
                    for (expert, share) in naive(&routing, &logits, Some(&correction)) {
                        let fed = mlp(&format!("mlp.experts.{expert}"), x);
                        theirs.iter_mut().zip(fed).for_each(|(sum, it)| *sum += share * it);
                    }
                    for (ours, theirs) in ours.iter().zip(&theirs) {
                        let near = (ours - theirs).abs() < 1e-4 * theirs.abs().max(1.0);
                        assert!(near, "{ours} instead of {theirs}");
                    }
                }
            }
        }
    }
}
