//! The families of DeepSeek's latent attention: V2 and V3 with Kimi K2 (HF `DeepseekV2ForCausalLM`,
//! `DeepseekV3ForCausalLM`), GLM-4.7-Flash (`Glm4MoeLiteForCausalLM`), Mistral Small 4
//! (`Mistral4ForCausalLM`). They differ in sizes, in the router, and in which layers are dense.

use serde_json::json;

use super::{
    deepseek::{Halves, Mixture, skip_heads},
    growth,
    prelude::*,
};
use crate::{
    block::{Mixer, TransformerBlock},
    growth::Growth,
    latent::{LatentAttention, LatentOptions, LatentSizes},
    rope::{Rope, RopeParameters},
    routing::Scores,
};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-6, tied: false, max_positions: 4096 };

const V3: LatentSizes =
    LatentSizes { rank: 512, query_rank: Some(1536), plain: 128, rotary: 64, value: 128 };

const FLASH: LatentSizes =
    LatentSizes { rank: 512, query_rank: Some(768), plain: 192, rotary: 64, value: 256 };

const MISTRAL4: LatentSizes =
    LatentSizes { rank: 256, query_rank: Some(1024), plain: 64, rotary: 64, value: 128 };

pub(super) fn build_v2(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &Defaults { max_positions: 2048, ..DEFAULTS })?;
    let method = config.str("topk_method")?.unwrap_or("greedy");
    let groups = match method {
        "greedy" => None,
        "group_limited_greedy" => Some((
            config.require("n_group", Config::usize)?,
            config.require("topk_group", Config::usize)?,
        )),
        other => {
            let what = format_args!("is {other:?}; known are greedy and group_limited_greedy");
            return Err(config.error("topk_method", what));
        }
    };
    let bias = config.bool("mlp_bias")?.unwrap_or(false);
    let chosen = config.require("num_experts_per_tok", Config::usize)?;
    let mixture = Mixture {
        experts: 64,
        chosen,
        inner: 1407,
        shared: 2,
        scale: 1.0,
        groups: groups.unwrap_or((1, 1)),
        grouped: groups.is_some(),
        scores: Scores::Softmax,
        judged_by: 1,
        correction: false,
        normalise: None,
    };
    let halves =
        Halves::read(config, &dims, mixture)?.with_dense_first(config, 0)?.with_biases(bias);
    let (interleaved, growth) = (true, None);
    assemble_latent(
        "deepseek_v2",
        config,
        weights,
        dims,
        Latent { sizes: V3, interleaved, growth },
        &halves,
    )
}

pub(super) fn build_v3(config: &Config, mut weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    if let Some(other) = config.str("topk_method")?.filter(|it| *it != "noaux_tc") {
        return Err(config.error("topk_method", format_args!("is {other:?}; known is noaux_tc")));
    }
    let halves = Halves::read(config, &dims, Mixture::V3)?.with_dense_first(config, 3)?;
    skip_heads(config, &dims, &mut weights)?;
    let latent = Latent { sizes: V3, interleaved: interleaved(config)?, growth: None };
    assemble_latent("deepseek_v3", config, weights, dims, latent, &halves)
}

pub(super) fn build_flash(config: &Config, mut weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &Defaults { eps: 1e-5, max_positions: 202_752, ..DEFAULTS })?;
    let mixture =
        Mixture { experts: 64, chosen: 4, inner: 1536, scale: 1.8, groups: (1, 1), ..Mixture::V3 };
    let halves = Halves::read(config, &dims, mixture)?.with_kinds(config, &dims)?;
    skip_heads(config, &dims, &mut weights)?;
    let latent = Latent { sizes: FLASH, interleaved: interleaved(config)?, growth: None };
    assemble_latent("glm4_moe_lite", config, weights, dims, latent, &halves)
}

pub(super) fn build_mistral4(config: &Config, weights: Weights) -> Result<Decoder> {
    // What the class has for a config that names no rotary embedding.
    let config = &config.clone().or_value(
        "rope_parameters",
        json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 128.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 8192, "llama_4_scaling_beta": 0.1}),
    );
    let dims = Dims::read(config, &Defaults { max_positions: 1_048_576, ..DEFAULTS })?;
    let mixture = Mixture {
        experts: 128,
        chosen: 4,
        inner: 2048,
        scale: 1.0,
        groups: (1, 1),
        scores: Scores::Softmax,
        correction: false,
        ..Mixture::V3
    };
    let halves = Halves::read(config, &dims, mixture)?.with_dense_first(config, 0)?;
    let growth = Some(growth(config, &dims)?);
    let latent = Latent { sizes: MISTRAL4, interleaved: interleaved(config)?, growth };
    assemble_latent("mistral4", config, weights, dims, latent, &halves)
}

fn interleaved(config: &Config) -> Result<bool> {
    Ok(config.bool("rope_interleave")?.unwrap_or(true))
}

/// What a family has of latent attention.
#[derive(Debug, Clone, Copy)]
struct Latent {
    /// Where the config leaves them out.
    sizes: LatentSizes,
    interleaved: bool,
    growth: Option<Growth>,
}

impl Latent {
    /// What `partial_rotary_factor` is: Mistral's class has it for the whole head, the others for the part
    /// that is rotated.
    fn whole(&self, sizes: LatentSizes) -> f64 {
        match self.growth {
            Some(_) => sizes.rotary as f64 / (sizes.plain + sizes.rotary) as f64,
            None => 1.0,
        }
    }
}

fn assemble_latent(
    model_type: &str,
    config: &Config,
    weights: Weights,
    dims: Dims,
    latent: Latent,
    halves: &Halves,
) -> Result<Decoder> {
    let sizes = latent.sizes.read(config)?;
    let parameters = rotary_parameters(config, &dims, latent.whole(sizes))?;
    let build = if latent.interleaved { Rope::interleaved } else { Rope::new };
    let options = LatentOptions {
        heads: config.size("num_attention_heads")?,
        rank: sizes.rank,
        query_rank: sizes.query_rank,
        plain: sizes.plain,
        rotary: sizes.rotary,
        value: sizes.value,
        bias: config.bool("attention_bias")?.unwrap_or(false),
        rope: Some(build(&parameters, sizes.rotary, sizes.rotary)?),
        growth: latent.growth,
        scale: scale(&parameters, sizes.plain + sizes.rotary)?,
    };
    let form = NormWeight::Plain;
    let of_decoder = DecoderOptions::default();
    assemble(model_type, dims, weights, form, of_decoder, |weights, at, layer| {
        let inside = format!("{at}.self_attn");
        let latent = LatentAttention::load(weights, &inside, &dims, options.clone())?;
        let mixer = Mixer::Latent { latent };
        let half = halves.load(weights, at, layer)?;
        let norms = (Norms::Before, form);
        Ok(Box::new(TransformerBlock::load(weights, at, &dims, norms, mixer, half)?))
    })
}

/// Of an embedding that rotates the `whole` of the rotary part.
fn rotary_parameters(config: &Config, dims: &Dims, whole: f64) -> Result<RopeParameters> {
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let key = "partial_rotary_factor";
    let part = parameters.scaling().f64(key)?.or(config.f64(key)?);
    match part.filter(|it| (it - whole).abs() > 1e-6) {
        Some(part) => Err(config.error(key, format_args!("is {part}; known is {whole}"))),
        None => Ok(parameters),
    }
}

/// What scores are multiplied by: under a scaled embedding more, where it has `mscale_all_dim`.
fn scale(parameters: &RopeParameters, width: usize) -> Result<f32> {
    let (plain, scaling) = ((width as f64).powf(-0.5), parameters.scaling());
    let all = scaling.f64("mscale_all_dim")?.filter(|&it| it != 0.0);
    let more = match all.filter(|_| parameters.kind != "default") {
        None => 1.0,
        Some(all) => match scaling.require("factor", Config::positive)? {
            factor if factor <= 1.0 => 1.0,
            factor => 0.1 * all * factor.ln() + 1.0,
        },
    };
    Ok((plain * more * more) as f32)
}
