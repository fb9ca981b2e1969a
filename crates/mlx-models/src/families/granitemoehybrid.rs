//! Granite 4, hybrid (HF `GraniteMoeHybridForCausalLM`): Mamba-2 in most layers, attention in the others,
//! Granite's multipliers, and an expert for every token, alone or beside a mixture.

use super::{chosen_of, layer_kinds, prelude::*};
use crate::{
    activation::Activation,
    block::{FeedForward, Mixer, TransformerBlock},
    mamba2::{Mamba2, MambaGating, MambaOptions, step_limit},
    mlp::{GatedMlp, MlpNames},
    moe::{MixtureNames, MixtureOfExperts, MixtureOptions},
    routed_experts::{ExpertNames, Gate},
    routing::{Routing, Scores},
    self_attention::SelfAttention,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-6, tied: false, max_positions: 2048 };

/// HF's names of the expert for every token; mlx-lm gives it the usual ones where it stands alone.
const FUSED: MlpNames = MlpNames { down: "output_linear", both: "input_linear", ..MlpNames::USUAL };

const MIXTURE: MixtureNames = MixtureNames {
    router: "router.layer",
    experts: ExpertNames { halves: Some(["input_linear", "output_linear"]), ..ExpertNames::USUAL },
    ..MixtureNames::USUAL
};

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let rope = match config.str("position_embedding_type")? {
        None | Some("nope") => None,
        Some("rope") => Some(rope(config, &dims, heads)?),
        Some(other) => {
            let what = format_args!("is {other:?}; known are rope and nope");
            return Err(config.error("position_embedding_type", what));
        }
    };
    let bias = config.bool("attention_bias")?.unwrap_or(false);
    let mamba = mamba(config, &dims)?;
    let is_mamba = mamba_layers(config, &dims)?;
    let mixture = mixture(config, &dims)?;
    let shared = if config.has("shared_intermediate_size") {
        config.size("shared_intermediate_size")?
    } else {
        1024
    };
    let shared = MlpOptions::new(shared, mamba.activation);
    let multiplier = |key| Ok::<_, crate::Error>(config.f32(key)?.unwrap_or(1.0));
    let scale = multiplier("attention_multiplier")?;
    let residual_scale = Some(multiplier("residual_multiplier")?);
    let logits_scaling = config.positive("logits_scaling")?.unwrap_or(1.0);
    let form = NormWeight::Plain;
    let options = DecoderOptions {
        embedding_scale: Some(multiplier("embedding_multiplier")?),
        logit_scale: Some((1.0 / logits_scaling) as f32),
        ..DecoderOptions::default()
    };
    assemble("granitemoehybrid", dims, weights, form, options, |weights, at, layer| {
        let mixer = if is_mamba[layer] {
            Mixer::Mamba { mamba: Mamba2::load(weights, &format!("{at}.mamba"), mamba)? }
        } else {
            let attention = AttentionOptions {
                qkv_bias: bias,
                output_bias: bias,
                scale: Some(scale),
                ..AttentionOptions::new(heads, rope.clone(), LayerSpec::Full)
            };
            let at = format!("{at}.self_attn");
            Mixer::Attention { attention: SelfAttention::load(weights, &at, &dims, attention)? }
        };
        let usual = format!("{at}.mlp");
        let mlp = if weights.has(&format!("{usual}.gate_proj.weight")) {
            GatedMlp::load(weights, &usual, dims.hidden, shared)?
        } else {
            let (at, fused) = (format!("{at}.shared_mlp"), MlpOptions { fused: true, ..shared });
            GatedMlp::load_named(weights, &at, dims.hidden, FUSED, fused)?
        };
        let half = if mixture.experts == 0 {
            FeedForward::Gated { mlp }
        } else {
            let (at, gate) = (format!("{at}.block_sparse_moe"), Gate::Plain(mixture.activation));
            let experts = MixtureOfExperts::load_named(weights, &at, MIXTURE, gate, mixture)?;
            FeedForward::Mixture { experts: experts.beside(mlp) }
        };
        let norms = (Norms::Before, form);
        let mut block = TransformerBlock::load(weights, at, &dims, norms, mixer, half)?;
        block.residual_scale = residual_scale;
        Ok(Box::new(block))
    })
}

/// By `layer_types`, which older files call `layers_block_type`; without either all of them.
fn mamba_layers(config: &Config, dims: &Dims) -> Result<Vec<bool>> {
    let known = [
        ("linear_attention", true),
        ("full_attention", false),
        ("mamba", true),
        ("attention", false),
    ];
    let key = if config.has("layer_types") { "layer_types" } else { "layers_block_type" };
    layer_kinds(config, dims, key, &known, |_| true)
}

fn mamba(config: &Config, dims: &Dims) -> Result<MambaOptions> {
    let size = |key: &str, default: usize| match config.has(key) {
        true => config.size(key),
        false => Ok(default),
    };
    let heads = size("mamba_n_heads", 128)?;
    let inner = size("mamba_expand", 2)? * dims.hidden;
    let key = "mamba_d_head";
    let auto = config.get(key).is_none_or(|it| it.as_str() == Some("auto"));
    let head_dim = if auto { inner / heads } else { config.size(key)? };
    if heads.checked_mul(head_dim) != Some(inner) {
        let what = format!("and {heads} heads do not make the {inner} channels");
        return Err(config.error(key, what));
    }
    let bias = config.bool("mamba_proj_bias")?.unwrap_or(false);
    MambaOptions {
        hidden: dims.hidden,
        heads,
        head_dim,
        groups: size("mamba_n_groups", 1)?,
        state: size("mamba_d_state", 256)?,
        width: size("mamba_d_conv", 4)?,
        bias,
        output_bias: bias,
        convolution_bias: config.bool("mamba_conv_bias")?.unwrap_or(true),
        activation: Activation::read(config, "hidden_act", "silu")?,
        step_limit: step_limit(config, "time_step_limit")?,
        eps: dims.eps,
        gating: MambaGating::GateThenNorm,
        multipliers: None,
    }
    .check(config, "mamba_n_groups")
}

fn mixture(config: &Config, dims: &Dims) -> Result<MixtureOptions> {
    let (experts, chosen) =
        chosen_of(config, ("num_local_experts", 8), ("num_experts_per_tok", 2))?;
    Ok(MixtureOptions {
        hidden: dims.hidden,
        inner: if experts == 0 { 0 } else { config.size("intermediate_size")? },
        experts,
        activation: Activation::read(config, "hidden_act", "silu")?,
        expert_bias: false,
        routing: Routing::new(Scores::Logits, chosen),
        router_bias: false,
        correction: false,
        shared: None,
    })
}
