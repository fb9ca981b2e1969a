//! Gemma 4's experts, which stand beside the dense layer.

use mlx_rs::{Array, Dtype};

use super::super::{chosen_of, prelude::*};
use crate::{
    activation::Activation,
    backend::Backend,
    linear::Linear,
    norm::RmsNorm,
    parameters::{Tensor, visit},
    routed_experts::{ExpertNames, Gate, RoutedExperts},
    routing::{Routing, Scores},
};

const EXPERTS: ExpertNames = ExpertNames { together: "experts.switch_glu", ..ExpertNames::USUAL };

/// Experts beside the dense layer.
#[derive(Debug)]
pub(super) struct Mixture {
    router: Router,
    experts: RoutedExperts,
    after_dense_norm: RmsNorm,
    before_norm: RmsNorm,
    after_norm: RmsNorm,
}

#[derive(Debug)]
struct Router {
    /// Without a weight.
    norm: RmsNorm,
    /// `[hidden]`.
    scale: Tensor,
    projection: Linear,
    /// `[experts]`.
    per_expert: Tensor,
    root: Array,
    routing: Routing,
    backend: Backend,
}

visit!(struct Mixture { router, experts, after_dense_norm, before_norm, after_norm });
visit!(struct Router { scale, projection, per_expert });

/// What a mixture consists of.
#[derive(Debug, Clone, Copy)]
pub(super) struct MixtureSizes {
    experts: usize,
    inner: usize,
    activation: Activation,
    routing: Routing,
}

/// As the config has them.
pub(super) fn sizes(config: &Config, activation: Activation) -> Result<MixtureSizes> {
    for key in ["num_experts", "top_k_experts"] {
        config.require(key, Config::usize)?;
    }
    let (experts, chosen) = chosen_of(config, ("num_experts", 0), ("top_k_experts", 0))?;
    let routing = Routing { normalise: Some(0.0), ..Routing::new(Scores::Softmax, chosen) };
    Ok(MixtureSizes { experts, inner: config.size("moe_intermediate_size")?, activation, routing })
}

impl Mixture {
    /// Loads the part of the block at `at` (`model.layers.3`).
    pub(super) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        sizes: MixtureSizes,
    ) -> Result<Self> {
        let MixtureSizes { experts, inner, activation, routing } = sizes;
        let hidden = dims.hidden;
        let root = Array::from_f32((hidden as f32).powf(-0.5)).as_dtype(weights.dtype())?;
        root.eval()?;
        let router = Router {
            norm: weights.unit_norm(hidden, dims.eps)?,
            scale: weights.tensor(&format!("{at}.router.scale"), &[hidden])?,
            projection: weights.linear(&format!("{at}.router.proj"), experts, hidden, false)?,
            per_expert: weights.tensor(&format!("{at}.router.per_expert_scale"), &[experts])?,
            root,
            routing,
            backend: weights.backend(),
        };
        let sizes = [experts, inner, hidden];
        let gate = Gate::Plain(activation);
        let experts = RoutedExperts::load(weights, at, EXPERTS, sizes, gate, false)?;
        let mut norm =
            |name: &str| weights.norm(&format!("{at}.{name}"), hidden, dims.eps, NormWeight::Plain);
        Ok(Self {
            router,
            experts,
            after_dense_norm: norm("post_feedforward_layernorm_1")?,
            before_norm: norm("pre_feedforward_layernorm_2")?,
            after_norm: norm("post_feedforward_layernorm_2")?,
        })
    }

    /// The experts' answer to `hidden` and the dense layer's, which is `fed`.
    pub(super) fn beside(&self, fed: &Array, hidden: &Array) -> Result<Array> {
        let (chosen, shares) = self.router.forward(hidden)?;
        let normed = self.before_norm.forward(hidden)?;
        let routed = self.experts.forward(&normed, &chosen, &shares)?;
        Ok(self.after_dense_norm.forward(fed)?.add(self.after_norm.forward(&routed)?)?)
    }
}

impl Router {
    fn forward(&self, hidden: &Array) -> Result<(Array, Array)> {
        let x = self.norm.forward(hidden)?.multiply(self.scale.array())?.multiply(&self.root)?;
        let logits = self.projection.forward(&x)?.as_dtype(Dtype::Float32)?;
        let (chosen, shares) = self.backend.route(&self.routing, logits, None)?;
        let scales = self.per_expert.array().take_axis(&chosen, 0)?;
        Ok((chosen, shares.multiply(scales.as_dtype(Dtype::Float32)?)?))
    }
}
