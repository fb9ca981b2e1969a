//! Nemotron-H and Nemotron 3 (HF `NemotronHForCausalLM`): one mixer per block, which is Mamba-2, attention
//! without positions, a feed-forward layer or a mixture of experts, none of them gated.

mod mixture;

use mlx_rs::Array;
use serde_json::Value;

use self::mixture::{Mixture, MixtureSizes};
use super::{assemble_before, layer_kinds, prelude::*, window};
use crate::{
    activation::Activation,
    block::{Block, Mixer},
    input::shortened,
    mamba2::{Mamba2, MambaGating, MambaOptions},
    mlp::PlainMlp,
    norm::RmsNorm,
    parameters::visit,
    pass::BlockPass,
    self_attention::SelfAttention,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    head_dim: Some(128),
    eps: 1e-5,
    tied: false,
    max_positions: 4096,
};

/// What a block consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mamba,
    Attention,
    Mlp,
    Mixture,
}

/// By the names of today and of yesterday.
const KINDS: [(&str, Kind); 6] = [
    ("linear_attention", Kind::Mamba),
    ("full_attention", Kind::Attention),
    ("mlp", Kind::Mlp),
    ("moe", Kind::Mixture),
    ("mamba", Kind::Mamba),
    ("attention", Kind::Attention),
];

pub(super) fn build(config: &Config, mut weights: Weights) -> Result<Decoder> {
    let (config, kinds) = kinds(config)?;
    let config = &config;
    let eps = config.f32("layer_norm_epsilon")?.unwrap_or(DEFAULTS.eps);
    let dims = Dims { eps, ..Dims::read(config, &DEFAULTS)? };
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    if window(config, None)?.is_some() {
        return Err(config.error("sliding_window", "is set; known is null"));
    }
    let mamba = mamba(config, &dims)?;
    let activation = Activation::read(config, "mlp_hidden_act", "relu2")?;
    let bias = config.bool("mlp_bias")?.unwrap_or(false);
    let inner = config.usize("intermediate_size")?.unwrap_or(21_504);
    let mlp = MlpOptions { bias, ..MlpOptions::new(inner, activation) };
    let sizes = match kinds.contains(&Kind::Mixture) {
        false => None,
        true => Some(MixtureSizes::read(config, &dims, mlp)?),
    };
    let form = NormWeight::Plain;
    // The heads for predicting further tokens.
    weights.leave_out("mtp");
    let (norm, options) = (("model.norm_f", form), DecoderOptions::default());
    assemble_before("nemotron_h", dims, weights, norm, options, |weights, at, layer| {
        let norm = weights.norm(&format!("{at}.norm"), dims.hidden, dims.eps, form)?;
        let at = format!("{at}.mixer");
        let part = match (kinds[layer], sizes) {
            (Kind::Mamba, _) => {
                Part::Mixer { mixer: Mixer::Mamba { mamba: Mamba2::load(weights, &at, mamba)? } }
            }
            (Kind::Attention, _) => {
                let attention = AttentionOptions::new(heads, None, LayerSpec::Full);
                let attention = SelfAttention::load(weights, &at, &dims, attention)?;
                Part::Mixer { mixer: Mixer::Attention { attention } }
            }
            (Kind::Mixture, Some(sizes)) => {
                Part::Mixture { mixture: Mixture::load(weights, &at, sizes)? }
            }
            (Kind::Mixture | Kind::Mlp, _) => {
                let names = ["up_proj", "down_proj"];
                Part::Mlp { mlp: PlainMlp::load(weights, &at, dims.hidden, names, mlp)? }
            }
        };
        Ok(Box::new(NemotronBlock { norm, part }))
    })
}

/// The blocks' kinds, by a list or, in older files, by a letter each; and the config with their number,
/// which newer ones leave out.
fn kinds(config: &Config) -> Result<(Config, Vec<Kind>)> {
    let names = ["layers_block_type", "layer_types"];
    let list = names.into_iter().find(|key| config.get(key).is_some());
    let key = list.unwrap_or("hybrid_override_pattern");
    let pattern = match list {
        Some(_) => None,
        None => Some(config.require(key, |config, key| {
            // mlx-lm writes the letters as a list.
            match config.get(key) {
                Some(Value::Array(_)) => {
                    let letters = config
                        .list(key, "a list of letters", |it| it.as_str().map(str::to_owned))?;
                    Ok(letters.map(|it| it.concat()))
                }
                _ => Ok(config.str(key)?.map(str::to_owned)),
            }
        })?),
    };
    let count = match &pattern {
        Some(letters) => letters.chars().count(),
        None => config
            .list(key, "a list of names", |it| it.as_str().map(|_| ()))?
            .map_or(0, |it| it.len()),
    };
    let config = config.clone().or_value("num_hidden_layers", Value::from(count));
    let dims = Dims::read(&config, &DEFAULTS)?;
    let Some(pattern) = pattern else {
        let kinds = layer_kinds(&config, &dims, key, &KINDS, |_| Kind::Mamba)?;
        return Ok((config, kinds));
    };
    if count != dims.layers {
        let what = format!("has {count} letters for {} layers", dims.layers);
        return Err(config.error(key, what));
    }
    let kind = |letter: char| match letter {
        'M' => Ok(Kind::Mamba),
        '*' => Ok(Kind::Attention),
        '-' => Ok(Kind::Mlp),
        'E' => Ok(Kind::Mixture),
        other => {
            let what =
                format!("holds \"{}\"; known are M, *, - and E", shortened(&other.to_string()));
            Err(config.error(key, what))
        }
    };
    let kinds = pattern.chars().map(kind).collect::<Result<_>>()?;
    Ok((config, kinds))
}

fn mamba(config: &Config, dims: &Dims) -> Result<MambaOptions> {
    // Older files have some fields under Mamba's own names.
    let size = |[key, older]: [&str; 2], default: usize| match (config.has(older), config.has(key))
    {
        (true, _) => config.size(older),
        (_, true) => config.size(key),
        _ => Ok(default),
    };
    // As in HF, which does without `time_step_limit`.
    let least = config.f32("mamba_dt_min")?.or(config.f32("time_step_min")?);
    let bias = config.bool("use_bias")?.unwrap_or(false);
    let convolution = config.bool("mamba_conv_bias")?.or(config.bool("use_conv_bias")?);
    MambaOptions {
        hidden: dims.hidden,
        heads: size(["mamba_num_heads"; 2], 128)?,
        head_dim: size(["mamba_head_dim"; 2], 64)?,
        groups: size(["n_groups", "mamba_n_groups"], 8)?,
        state: size(["ssm_state_size"; 2], 128)?,
        width: size(["conv_kernel", "mamba_d_conv"], 4)?,
        bias,
        output_bias: bias,
        convolution_bias: convolution.unwrap_or(true),
        activation: Activation::read(config, "mamba_hidden_act", "silu")?,
        step_limit: (least.unwrap_or(0.001), f32::INFINITY),
        eps: dims.eps,
        gating: MambaGating::GateThenNorm,
        multipliers: None,
    }
    .check(config, "n_groups")
}

/// `x + part(norm(x))`. What mixes tokens adds in the first half, what feeds forward in the second.
#[derive(Debug)]
struct NemotronBlock {
    norm: RmsNorm,
    part: Part,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
enum Part {
    Mixer { mixer: Mixer },
    Mlp { mlp: PlainMlp },
    Mixture { mixture: Mixture },
}

visit!(struct NemotronBlock { norm, part });
visit!(enum Part { Mixer { mixer }, Mlp { mlp }, Mixture { mixture } });

impl Block for NemotronBlock {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        let Part::Mixer { mixer } = &self.part else { return Ok(None) };
        mixer.forward(layer, &self.norm.forward(hidden)?, pass).map(Some)
    }

    fn feed_forward(
        &self,
        _: usize,
        hidden: &Array,
        _: &mut BlockPass<'_>,
    ) -> Result<Option<Array>> {
        match &self.part {
            Part::Mixer { .. } => Ok(None),
            Part::Mlp { mlp } => mlp.forward(&self.norm.forward(hidden)?).map(Some),
            Part::Mixture { mixture } => mixture.forward(&self.norm.forward(hidden)?).map(Some),
        }
    }

    fn spec(&self) -> LayerSpec {
        match &self.part {
            Part::Mixer { mixer } => mixer.spec(),
            _ => LayerSpec::Nothing,
        }
    }

    fn cached_per_token(&self) -> usize {
        match &self.part {
            Part::Mixer { mixer } => mixer.cached_per_token(),
            _ => 0,
        }
    }

    fn attention(&self) -> Option<&SelfAttention> {
        match &self.part {
            Part::Mixer { mixer: Mixer::Attention { attention } } => Some(attention),
            _ => None,
        }
    }

    fn head_dims(&self) -> Option<[usize; 2]> {
        match &self.part {
            Part::Mixer { mixer } => mixer.head_dims(),
            _ => None,
        }
    }
}
