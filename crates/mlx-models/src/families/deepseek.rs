//! What the families with DeepSeek's mixture share: the routing's fields, and which layers are dense.

use super::{chosen_of, layer_kinds, mlp};
use crate::{
    Result,
    activation::Activation,
    block::FeedForward,
    config::{Config, Dims},
    mlp::{GatedMlp, MlpOptions},
    moe::{MixtureOfExperts, MixtureOptions, SharedOptions},
    routing::{Groups, Routing, Scores},
    weights::Weights,
};

/// What a family has where a config leaves a field out, and what its routing is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixture {
    pub(super) experts: usize,
    pub(super) chosen: usize,
    pub(super) inner: usize,
    /// Shared experts, which are one of so many times the width.
    pub(super) shared: usize,
    pub(super) scale: f64,
    /// How many groups there are, and how many are chosen from.
    pub(super) groups: (usize, usize),
    /// Whether experts are chosen by groups.
    pub(super) grouped: bool,
    pub(super) scores: Scores,
    /// How many of its best scores a group is judged by.
    pub(super) judged_by: usize,
    pub(super) correction: bool,
    /// Whether shares are normalised; `None`: never, whatever the config says.
    pub(super) normalise: Option<bool>,
}

impl Mixture {
    /// DeepSeek V3's.
    pub(super) const V3: Self = Self {
        experts: 256,
        chosen: 8,
        inner: 2048,
        shared: 1,
        scale: 2.5,
        groups: (8, 4),
        grouped: true,
        scores: Scores::Sigmoid,
        judged_by: 2,
        correction: true,
        normalise: Some(true),
    };

    fn read(self, config: &Config, dims: &Dims) -> Result<MixtureOptions> {
        self.read_with(config, dims, Activation::read(config, "hidden_act", "silu")?)
    }

    /// As the config has it, for experts of this activation.
    pub(super) fn read_with(
        self,
        config: &Config,
        dims: &Dims,
        activation: Activation,
    ) -> Result<MixtureOptions> {
        let (experts, chosen) = chosen_of(
            config,
            ("n_routed_experts", self.experts),
            ("num_experts_per_tok", self.chosen),
        )?;
        let scoring = if self.scores == Scores::Sigmoid { "sigmoid" } else { "softmax" };
        if let Some(other) = config.str("scoring_func")?.filter(|it| *it != scoring) {
            let what = format_args!("is {other:?}; known is {scoring}");
            return Err(config.error("scoring_func", what));
        }
        let groups = |key: &str, default| -> Result<usize> {
            if self.grouped { Ok(config.usize(key)?.unwrap_or(default)) } else { Ok(1) }
        };
        let count = groups("n_group", self.groups.0)?;
        let kept = groups("topk_group", self.groups.1)?;
        if count == 0 || experts % count != 0 {
            let what = format_args!("is {count}, which does not divide the {experts} experts");
            return Err(config.error("n_group", what));
        }
        let size = experts / count;
        if !(1..=count).contains(&kept) || kept * size < chosen {
            let what = format_args!("is {kept} of {count} groups of {size} experts");
            return Err(config.error("topk_group", what));
        }
        if count > 1 && size < self.judged_by {
            let what = format_args!("is {count}, which leaves groups of {size} experts");
            return Err(config.error("n_group", what));
        }
        let groups = (kept < count).then_some(Groups { count, kept, judged_by: self.judged_by });
        let normalise = match self.normalise {
            None => false,
            Some(default) => config.bool("norm_topk_prob")?.unwrap_or(default),
        };
        let inner = config.usize("moe_intermediate_size")?.unwrap_or(self.inner);
        let shared = config.usize("n_shared_experts")?.unwrap_or(self.shared);
        if shared == 0 {
            return Err(config.error("n_shared_experts", "must be above 0"));
        }
        let scale = config.f64("routed_scaling_factor")?.unwrap_or(self.scale) as f32;
        Ok(MixtureOptions {
            hidden: dims.hidden,
            inner,
            experts,
            activation,
            expert_bias: false,
            routing: Routing {
                groups,
                normalise: normalise.then_some(1e-20),
                scale,
                ..Routing::new(self.scores, chosen)
            },
            router_bias: false,
            correction: self.correction,
            shared: Some(SharedOptions { inner: shared * inner, gated: false, bias: false }),
        })
    }
}

/// The feed-forward halves of a model: dense ones, and mixtures.
#[derive(Debug)]
pub(super) struct Halves {
    mixture: MixtureOptions,
    dense: MlpOptions,
    hidden: usize,
    /// By layer.
    is_sparse: Vec<bool>,
}

impl Halves {
    /// A mixture in every layer.
    pub(super) fn read(config: &Config, dims: &Dims, mixture: Mixture) -> Result<Self> {
        if let Some(step) = config.usize("moe_layer_freq")?.filter(|&it| it != 1) {
            return Err(config.error("moe_layer_freq", format_args!("is {step}; known is 1")));
        }
        Ok(Self {
            mixture: mixture.read(config, dims)?,
            dense: mlp(config, "hidden_act", "silu")?,
            hidden: dims.hidden,
            is_sparse: vec![true; dims.layers],
        })
    }

    /// Dense layers and shared experts with biases, if `bias`.
    pub(super) fn with_biases(mut self, bias: bool) -> Self {
        self.dense.bias = bias;
        self.mixture.shared = self.mixture.shared.map(|it| SharedOptions { bias, ..it });
        self
    }

    /// The first `first_k_dense_replace` layers are dense.
    pub(super) fn with_dense_first(mut self, config: &Config, default: usize) -> Result<Self> {
        let first = config.usize("first_k_dense_replace")?.unwrap_or(default);
        self.is_sparse.iter_mut().take(first).for_each(|it| *it = false);
        Ok(self)
    }

    /// Dense are the layers that `mlp_layer_types` calls so, by default the first.
    pub(super) fn with_kinds(mut self, config: &Config, dims: &Dims) -> Result<Self> {
        let known = [("sparse", true), ("dense", false)];
        self.is_sparse = layer_kinds(config, dims, "mlp_layer_types", &known, |layer| layer > 0)?;
        Ok(self)
    }

    /// Loads the half of a layer at `at` (`model.layers.3`).
    pub(super) fn load(
        &self,
        weights: &mut Weights,
        at: &str,
        layer: usize,
    ) -> Result<FeedForward> {
        let inside = format!("{at}.mlp");
        Ok(if self.is_sparse[layer] {
            let experts = MixtureOfExperts::load(weights, &inside, self.mixture)?;
            FeedForward::Mixture { experts }
        } else {
            let mlp = GatedMlp::load(weights, &inside, self.hidden, self.dense)?;
            FeedForward::Gated { mlp }
        })
    }
}

/// Leaves out the heads for predicting further tokens, which follow the layers.
pub(super) fn skip_heads(config: &Config, dims: &Dims, weights: &mut Weights) -> Result<()> {
    let heads = config.usize("num_nextn_predict_layers")?.unwrap_or(1);
    // A config may promise any number of them.
    for layer in (dims.layers..).take(heads) {
        let part = format!("model.layers.{layer}");
        if !weights.has_part(&part) {
            break;
        }
        weights.leave_out(&part);
    }
    Ok(())
}
