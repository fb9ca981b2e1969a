//! A mixture of experts: a router, the experts, and an expert that every token is fed to.

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::{
        arange, argpartition_axis,
        indexing::{Ellipsis, TryIndexOp, topk_axis},
        maximum, minimum, select, sigmoid, softmax_axis,
    },
    stop_gradient,
};

use crate::{
    Result,
    activation::Activation,
    backend::Backend,
    experts::Experts,
    linear::Linear,
    mlp::{GatedMlp, MlpOptions},
    parameters::{Tensor, visit},
    weights::Weights,
};

/// Each token is fed to the experts that the router picks, and to the shared one.
#[derive(Debug)]
pub(crate) struct MixtureOfExperts {
    router: Router,
    experts: RoutedExperts,
    shared: Option<SharedExpert>,
}

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
}

/// What becomes of gate and up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gate {
    /// `activation(gate) · up`.
    Plain(Activation),
    /// `gate · σ(alpha · gate) · (up + 1)`, with gate at most `limit`, and up within `±limit` (gpt-oss).
    Clamped { alpha: f32, limit: f32 },
}

/// Which experts a token is fed to, and how much each counts.
#[derive(Debug)]
pub(crate) struct Router {
    projection: Linear,
    /// Added to the scores where experts are chosen, `[experts]` or `[1, experts]`.
    correction: Option<Tensor>,
    routing: Routing,
}

/// An expert that every token is fed to.
#[derive(Debug)]
struct SharedExpert {
    mlp: GatedMlp,
    /// Its share, `σ(gate(x))`; 1 without.
    gate: Option<Linear>,
}

visit!(struct MixtureOfExperts { router, experts, shared });
visit!(struct RoutedExperts { gate_up, down });
visit!(enum GateUp { Separate { gate, up }, Fused { both }, Interleaved { both } });
visit!(struct Router { projection, correction });
visit!(struct SharedExpert { mlp, gate });

/// How experts are chosen by the router's logits, and their shares made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Routing {
    pub(crate) scores: Scores,
    /// How many experts a token is fed to.
    pub(crate) chosen: usize,
    /// Chosen are the experts of the best groups only.
    pub(crate) groups: Option<Groups>,
    /// Shares are divided by their sum plus this.
    pub(crate) normalise: Option<f32>,
    /// The sum that shares are divided by is at least this.
    pub(crate) least_sum: f32,
    /// Shares are multiplied by this last.
    pub(crate) scale: f32,
}

/// What an expert's score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scores {
    /// The softmax over all experts' logits.
    Softmax,
    /// The logit; the softmax over the chosen ones is their share.
    Logits,
    /// The sigmoid of the logit.
    Sigmoid,
}

/// Experts in groups of equal size, one behind another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups {
    pub(crate) count: usize,
    /// How many groups experts are chosen from.
    pub(crate) kept: usize,
    /// How many of its best scores a group is judged by, added up.
    pub(crate) judged_by: usize,
}

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

/// What a family's checkpoints call the parts of experts, and how they lay them out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertNames {
    /// Where mlx-lm keeps all of them together.
    pub(crate) together: &'static str,
    /// Gate, up and down of a single expert, where each has tensors of its own.
    pub(crate) each: [&'static str; 3],
    /// Whether HF's tensors for all experts have inputs before outputs, and gate and up row by row.
    pub(crate) transposed: bool,
    /// The two products of all experts, where HF has them under other names and with an ending.
    pub(crate) halves: Option<[&'static str; 2]>,
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

impl ExpertNames {
    pub(crate) const USUAL: Self = Self {
        together: "switch_mlp",
        each: ["gate_proj", "up_proj", "down_proj"],
        transposed: false,
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
        let gate_up = match (fused, names.transposed) {
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

    /// What the `chosen` experts make of `hidden`, `[batch, tokens, hidden]`, each times its share:
    /// both `[batch, tokens, chosen]`.
    pub(crate) fn forward(&self, hidden: &Array, chosen: &Array, shares: &Array) -> Result<Array> {
        let shares = shares.as_dtype(hidden.dtype())?.expand_dims(-1)?;
        let x = hidden.expand_dims_axes(&[-2, -3])?;
        let (gate, up) = match &self.gate_up {
            GateUp::Separate { gate, up } => (gate.forward(&x, chosen)?, up.forward(&x, chosen)?),
            GateUp::Fused { both } => {
                let halves = both.forward(&x, chosen)?.split_equal(2, -1)?;
                (halves[0].clone(), halves[1].clone())
            }
            GateUp::Interleaved { both } => {
                let both = both.forward(&x, chosen)?;
                let half = both.dim(-1) / 2;
                let pairs = both.reshape(&[&both.shape()[..4], &[half, 2]].concat())?;
                let of = |index: i32| pairs.try_index((Ellipsis, index));
                (of(0)?, of(1)?)
            }
        };
        let inner = self.gate.forward(&gate, &up, self.backend)?;
        let outputs = self.down.forward(&inner, chosen)?.squeeze_axes(&[-2])?;
        Ok(outputs.multiply(shares)?.sum_axis(-2, false)?)
    }
}

impl Gate {
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
        self.routing.choose(logits, correction)
    }
}

impl Routing {
    pub(crate) fn choose(
        &self,
        logits: Array,
        correction: Option<&Array>,
    ) -> MlxResult<(Array, Array)> {
        let scores = match self.scores {
            Scores::Softmax => softmax_axis(logits, -1, true)?,
            Scores::Logits => logits,
            Scores::Sigmoid => sigmoid(logits)?,
        };
        let corrected = correction.map(|it| scores.add(it)).transpose()?;
        let judged = corrected.as_ref().unwrap_or(&scores);
        let judged = match self.groups {
            None => judged.clone(),
            Some(groups) => groups.mask(judged)?,
        };
        let chosen = best(&judged, self.chosen)?;
        let mut shares = scores.take_along_axis(&chosen, -1)?;
        if self.scores == Scores::Logits {
            shares = softmax_axis(shares, -1, true)?;
        }
        if let Some(epsilon) = self.normalise {
            let sum = shares.sum_axis(-1, true)?;
            let sum = if epsilon == 0.0 { sum } else { sum.add(Array::from_f32(epsilon))? };
            let sum = match self.least_sum {
                0.0 => sum,
                least => maximum(sum, Array::from_f32(least))?,
            };
            shares = shares.divide(sum)?;
        }
        if self.scale != 1.0 {
            shares = shares.multiply(Array::from_f32(self.scale))?;
        }
        Ok((chosen, shares))
    }
}

impl Groups {
    /// The scores, `[.., experts]`, with minus infinity outside the best groups.
    fn mask(self, scores: &Array) -> MlxResult<Array> {
        let shape = scores.shape().to_vec();
        let (leading, experts) = shape.split_at(shape.len() - 1);
        let count = self.count as i32;
        let grouped = [leading, &[count, experts[0] / count]].concat();
        let scores = scores.reshape(&grouped)?;
        let judged = topk_axis(&scores, self.judged_by as i32, -1)?.sum_axis(-1, false)?;
        let kept = best(&judged, self.kept)?.expand_dims(-1)?;
        let is_kept = kept.eq(arange::<_, u32>(None, count, None)?)?.any_axis(-2, false)?;
        let masked =
            select(&is_kept.expand_dims(-1)?, &scores, Array::from_f32(f32::NEG_INFINITY))?;
        masked.reshape(&shape)
    }
}

/// The places of the `count` highest values on the last axis, in no particular order. No gradient
/// goes through a choice.
fn best(values: &Array, count: usize) -> MlxResult<Array> {
    let count = count as i32;
    let order = argpartition_axis(values.negative()?, count - 1, -1)?;
    stop_gradient(order.try_index((.., .., 0..count))?)
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
        let mlp = MlpOptions::new(shared.inner, options.activation);
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

    use mlx_rs::random;

    use super::*;
    use crate::config::Config;

    const TOKENS: usize = 5;
    const HIDDEN: usize = 8;
    const EXPERTS: usize = 12;
    const INNER: usize = 6;

    fn noise(seed: u64, shape: &[i32]) -> Array {
        random::normal::<f32>(shape, None, None, &random::key(seed).unwrap()).unwrap()
    }

    fn values(array: &Array) -> Vec<f32> {
        array.to_vec_exact().unwrap()
    }

    fn sigma(x: f32) -> f32 {
        1.0 / (1.0 + (-x).exp())
    }

    fn softmax(values: &[f32]) -> Vec<f32> {
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f32> = values.iter().map(|it| (it - most).exp()).collect();
        let sum: f32 = powers.iter().sum();
        powers.iter().map(|it| it / sum).collect()
    }

    /// The places of the highest values, ascending.
    fn top(values: &[f32], count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        order.truncate(count);
        order.sort_unstable();
        order
    }

    /// One token's experts and shares, as transformers' router modules have it.
    fn naive(routing: &Routing, logits: &[f32], correction: Option<&[f32]>) -> Vec<(usize, f32)> {
        let scores: Vec<f32> = match routing.scores {
            Scores::Softmax => softmax(logits),
            Scores::Logits => logits.to_vec(),
            Scores::Sigmoid => logits.iter().map(|&it| sigma(it)).collect(),
        };
        let mut judged = scores.clone();
        if let Some(correction) = correction {
            judged.iter_mut().zip(correction).for_each(|(it, more)| *it += more);
        }
        if let Some(Groups { count, kept, judged_by }) = routing.groups {
            let size = judged.len() / count;
            let of_group =
                |group: &[f32]| -> f32 { top(group, judged_by).iter().map(|&it| group[it]).sum() };
            let groups: Vec<f32> = judged.chunks(size).map(of_group).collect();
            let kept = top(&groups, kept);
            for (index, it) in judged.iter_mut().enumerate() {
                if !kept.contains(&(index / size)) {
                    *it = f32::NEG_INFINITY;
                }
            }
        }
        let chosen = top(&judged, routing.chosen);
        let mut shares: Vec<f32> = chosen.iter().map(|&it| scores[it]).collect();
        if routing.scores == Scores::Logits {
            shares = softmax(&shares);
        }
        if let Some(epsilon) = routing.normalise {
            let sum: f32 = (shares.iter().sum::<f32>() + epsilon).max(routing.least_sum);
            shares.iter_mut().for_each(|it| *it /= sum);
        }
        chosen.into_iter().zip(shares.into_iter().map(|it| it * routing.scale)).collect()
    }

    /// What the families of today and of the near future have.
    fn routings() -> Vec<(Routing, bool)> {
        let routing = |scores, groups, normalise, scale| Routing {
            scores,
            chosen: 3,
            groups,
            normalise,
            least_sum: 0.0,
            scale,
        };
        let groups = |kept, judged_by| Some(Groups { count: 4, kept, judged_by });
        vec![
            // Qwen3-MoE, with and without `norm_topk_prob`.
            (routing(Scores::Softmax, None, Some(0.0), 1.0), false),
            (routing(Scores::Softmax, None, None, 1.0), false),
            // gpt-oss, Granite.
            (routing(Scores::Logits, None, None, 1.0), false),
            // DeepSeek V2: groups by their best.
            (routing(Scores::Softmax, groups(2, 1), None, 16.0), false),
            // DeepSeek V3, GLM-4.5.
            (routing(Scores::Sigmoid, groups(2, 2), Some(1e-20), 2.5), true),
            // LFM2-MoE.
            (routing(Scores::Sigmoid, None, Some(1e-6), 1.0), true),
            // A sum of shares for which the epsilon counts.
            (routing(Scores::Sigmoid, None, Some(0.5), 1.8), false),
            // ERNIE 4.5, with a least sum that counts.
            (Routing { least_sum: 0.6, ..routing(Scores::Softmax, None, Some(0.0), 1.0) }, true),
        ]
    }

    #[test]
    fn routers_choose_and_weigh_as_their_definitions_do() {
        let correction = noise(2, &[EXPERTS as i32]);
        let mut swayed = 0;
        for (routing, corrected) in routings() {
            for seed in 3..23 {
                let logits = noise(seed, &[1, TOKENS as i32, EXPERTS as i32]);
                let correction = corrected.then_some(&correction);
                let (chosen, shares) = routing.choose(logits.clone(), correction).unwrap();
                assert_eq!(chosen.shape(), [1, TOKENS as i32, 3], "{routing:?}");
                let chosen = chosen.contiguous().unwrap().to_vec_exact::<u32>().unwrap();
                let shares = values(&shares);
                let correction = correction.map(values);
                for (token, logits) in values(&logits).chunks(EXPERTS).enumerate() {
                    let at = 3 * token..3 * (token + 1);
                    let ours = chosen[at.clone()].iter().map(|&it| it as usize);
                    let mut ours: Vec<_> = ours.zip(shares[at].iter().copied()).collect();
                    ours.sort_by_key(|it| it.0);
                    let theirs = naive(&routing, logits, correction.as_deref());
                    for (ours, theirs) in ours.iter().zip(&theirs) {
                        assert_eq!(ours.0, theirs.0, "{routing:?}");
                        assert!((ours.1 - theirs.1).abs() < 1e-6 * theirs.1.abs().max(1.0));
                    }
                    let plain = Routing { groups: None, ..routing };
                    swayed += usize::from(theirs != naive(&plain, logits, None));
                }
            }
        }
        assert!(swayed > 50, "groups and corrections hardly changed a choice: {swayed}");
    }

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
                    scores: Scores::Sigmoid,
                    chosen: 3,
                    groups: None,
                    normalise: Some(1e-20),
                    least_sum: 0.0,
                    scale: 2.5,
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
                        shared: Some(SharedOptions { inner: INNER, gated: true }),
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
