//! Nemotron 3's experts: without a gate, in a space of their own where the config has one, beside an expert
//! for every token.

use mlx_rs::{Array, Dtype};

use super::super::{deepseek, prelude::*};
use crate::{
    backend::Backend,
    linear::Linear,
    mlp::PlainMlp,
    parameters::{Tensor, visit},
    routed_experts::RoutedExperts,
    routing::Routing,
};

#[derive(Debug)]
pub(super) struct Mixture {
    router: Linear,
    /// Added to the scores where experts are chosen, fp32 `[experts]`.
    correction: Tensor,
    routing: Routing,
    backend: Backend,
    /// Into the experts' space, and out of it.
    latent: Option<Latent>,
    experts: RoutedExperts,
    shared: PlainMlp,
}

#[derive(Debug)]
struct Latent {
    down: Linear,
    up: Linear,
}

visit!(struct Mixture { router, correction, latent, experts, shared });
visit!(struct Latent { down, up });

/// What a mixture consists of.
#[derive(Debug, Clone, Copy)]
pub(super) struct MixtureSizes {
    hidden: usize,
    latent: Option<usize>,
    experts: usize,
    inner: usize,
    routing: Routing,
    shared: MlpOptions,
}

const MIXTURE: deepseek::Mixture = deepseek::Mixture {
    experts: 8,
    chosen: 2,
    inner: 7688,
    shared: 1,
    scale: 1.0,
    groups: (1, 1),
    ..deepseek::Mixture::V3
};

impl MixtureSizes {
    /// As the config has them, with the activation and biases of `mlp`.
    pub(super) fn read(config: &Config, dims: &Dims, mlp: MlpOptions) -> Result<Self> {
        let options = MIXTURE.read_with(config, dims, mlp.activation)?;
        let shared = config.usize("moe_shared_expert_intermediate_size")?.unwrap_or(7688);
        Ok(Self {
            hidden: dims.hidden,
            latent: config.usize("moe_latent_size")?,
            experts: options.experts,
            inner: options.inner,
            routing: options.routing,
            shared: MlpOptions { inner: shared, ..mlp },
        })
    }
}

impl Mixture {
    /// Loads the layer at `at` (`model.layers.3.mixer`).
    pub(super) fn load(weights: &mut Weights, at: &str, sizes: MixtureSizes) -> Result<Self> {
        let MixtureSizes { hidden, latent, experts: count, inner, routing, shared } = sizes;
        let name = |it: &str| format!("{at}.{it}");
        let correction = name("gate.e_score_correction_bias");
        Ok(Self {
            router: weights.linear(&name("gate"), count, hidden, false)?,
            correction: weights.derived(&correction, &[count], true, |it| Ok(it.clone()))?,
            routing,
            backend: weights.backend(),
            latent: match latent {
                None => None,
                Some(width) => Some(Latent {
                    down: weights.linear(&name("fc1_latent_proj"), width, hidden, shared.bias)?,
                    up: weights.linear(&name("fc2_latent_proj"), hidden, width, shared.bias)?,
                }),
            },
            experts: {
                let sizes = [count, inner, latent.unwrap_or(hidden)];
                RoutedExperts::load_plain(weights, at, sizes, shared.activation)?
            },
            shared: {
                let names = ["up_proj", "down_proj"];
                PlainMlp::load(weights, &name("shared_experts"), hidden, names, shared)?
            },
        })
    }

    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        let logits = self.router.forward(x)?.as_dtype(Dtype::Float32)?;
        let correction = Some(self.correction.array());
        let (chosen, shares) = self.backend.route(&self.routing, logits, correction)?;
        let routed = match &self.latent {
            None => self.experts.forward(x, &chosen, &shares)?,
            Some(Latent { down, up }) => {
                let routed = self.experts.forward(&down.forward(x)?, &chosen, &shares)?;
                up.forward(&routed)?
            }
        };
        Ok(routed.add(self.shared.forward(x)?)?)
    }
}
