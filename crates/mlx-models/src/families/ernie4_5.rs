//! ERNIE 4.5 (HF `Ernie4_5ForCausalLM`, `Ernie4_5_MoeForCausalLM`): heads rotated in neighbouring pairs; in
//! the larger models a mixture beside shared experts in most layers.

use super::{RopeStyle, block, chosen_of, prelude::*, styled_rope};
use crate::{
    activation::Activation,
    block::FeedForward,
    mlp::GatedMlp,
    moe::{MixtureNames, MixtureOfExperts, MixtureOptions, SharedOptions},
    routed_experts::Gate,
    routing::{Routing, Scores},
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(2),
    head_dim: Some(128),
    eps: 1e-5,
    tied: true,
    max_positions: 131_072,
};

const MOE_DEFAULTS: Defaults = Defaults { kv_heads: Some(4), head_dim: None, ..DEFAULTS };

const STYLE: RopeStyle = RopeStyle { interleaved: true, ..RopeStyle::of_theta(500_000.0) };

const NAMES: MixtureNames = MixtureNames {
    correction: "moe_statics.e_score_correction_bias",
    correction_axes: 2,
    ..MixtureNames::USUAL
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = styled_rope(config, &dims, heads, STYLE)?;
    let bias = config.bool("use_bias")?.unwrap_or(false);
    let mlp = MlpOptions { bias, ..mlp(config, "hidden_act", "silu")? };
    let form = NormWeight::Plain;
    assemble("ernie4_5", dims, weights, form, DecoderOptions::default(), |weights, at, _| {
        let attention = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
        };
        dense_block(weights, at, &dims, (Norms::Before, form), attention, mlp)
    })
}

pub(super) fn build_moe(config: &Config, mut weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &MOE_DEFAULTS)?;
    let heads = Heads::read(config, &MOE_DEFAULTS, dims.hidden)?;
    let rope = styled_rope(config, &dims, heads, STYLE)?;
    if config.bool("use_bias")?.unwrap_or(false) {
        // It would be on the head, too.
        return Err(config.error("use_bias", "is true, which is not supported in a mixture"));
    }
    let (mixture, is_sparse) = (mixture(config, &dims)?, sparse_layers(config, &dims)?);
    for part in ["model.mtp_block", "model.mtp_emb_norm", "model.mtp_hidden_norm"] {
        weights.leave_out(part);
    }
    weights.leave_out("model.mtp_linear_proj");
    let form = NormWeight::Plain;
    let options = DecoderOptions::default();
    assemble("ernie4_5_moe", dims, weights, form, options, |weights, at, layer| {
        let attention = AttentionOptions::new(heads, rope.clone(), LayerSpec::Full);
        let inside = format!("{at}.mlp");
        let half = if is_sparse(layer) {
            let gate = Gate::Plain(mixture.activation);
            let experts = MixtureOfExperts::load_named(weights, &inside, NAMES, gate, mixture)?;
            FeedForward::Mixture { experts }
        } else {
            let mlp = mlp(config, "hidden_act", "silu")?;
            FeedForward::Gated { mlp: GatedMlp::load(weights, &inside, dims.hidden, mlp)? }
        };
        block(weights, at, &dims, (Norms::Before, form), attention, half)
    })
}

fn mixture(config: &Config, dims: &Dims) -> Result<MixtureOptions> {
    let (experts, chosen) = chosen_of(config, ("moe_num_experts", 64), ("moe_k", 6))?;
    let inner = config.usize("moe_intermediate_size")?.unwrap_or(1536);
    let shared = config.usize("moe_num_shared_experts")?.unwrap_or(2);
    Ok(MixtureOptions {
        hidden: dims.hidden,
        inner,
        experts,
        activation: Activation::read(config, "hidden_act", "silu")?,
        expert_bias: false,
        routing: Routing {
            normalise: Some(0.0),
            least_sum: config.positive("moe_norm_min")?.unwrap_or(1e-12) as f32,
            ..Routing::new(Scores::Softmax, chosen)
        },
        router_bias: false,
        correction: true,
        shared: (shared > 0).then_some(SharedOptions {
            inner: shared * inner,
            gated: false,
            bias: false,
        }),
    })
}

/// Every `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index`, of which -1
/// is the last.
fn sparse_layers(config: &Config, dims: &Dims) -> Result<impl Fn(usize) -> bool + use<>> {
    let interval = config.usize("moe_layer_interval")?.unwrap_or(1);
    if interval == 0 {
        return Err(config.error("moe_layer_interval", "must be above 0"));
    }
    let first = config.usize("moe_layer_start_index")?.unwrap_or(1);
    let last = match config.f64("moe_layer_end_index")? {
        None | Some(-1.0) => dims.layers - 1,
        Some(_) => config.require("moe_layer_end_index", Config::usize)?,
    };
    Ok(move |layer: usize| (layer + 1).is_multiple_of(interval) && (first..=last).contains(&layer))
}
