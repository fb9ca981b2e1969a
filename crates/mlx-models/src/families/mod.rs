//! The families: one file each, which reads HF's config fields and builds the blocks.

mod cohere2;
mod deepseek;
mod deepseek_v3;
mod ernie4_5;
mod exaone4;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod glm4;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod granitemoehybrid;
mod hunyuan_v1_dense;
mod kimi_linear;
mod laguna;
mod lfm2;
mod lfm3;
mod llama;
mod llama4;
mod mellum;
mod minimax_m2;
mod ministral3;
mod mistral;
mod mixtral;
mod muse_glimmer;
mod nemotron_h;
mod olmo2;
mod olmo3;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod seed_oss;
mod smollm3;
mod starcoder2;
mod wrapper;

use mlxgk_kv_cache::LayerSpec;

use crate::{
    Decoder, Result,
    activation::Activation,
    block::{Block, FeedForward, Mixer, Norms, TransformerBlock},
    config::{Config, Dims, Heads},
    decoder::DecoderOptions,
    growth::Growth,
    input::shortened,
    load,
    mlp::{GatedMlp, MlpOptions},
    mtp::HeadPlace,
    norm::NormWeight,
    rope::{Rope, RopeParameters},
    self_attention::{AttentionOptions, SelfAttention},
    unread,
    weights::Weights,
};

type Build = fn(&Config, Weights) -> Result<Decoder>;

/// What the goldens of a family were recorded from: dense weights, and affine-quantized ones.
const HF: &str = "transformers";
const HF_AND_MLX: &str = "transformers; mlx-lm for quantized weights";

/// Every `model_type` that [`Decoder::load`] knows, and what its graph was checked against.
const FAMILIES: &[(&str, Build, &str)] = &[
    ("cohere2", cohere2::build, HF),
    ("deepseek_v2", deepseek_v3::build_v2, HF),
    ("deepseek_v3", deepseek_v3::build_v3, HF),
    ("ernie4_5", ernie4_5::build, HF),
    ("ernie4_5_moe", ernie4_5::build_moe, HF),
    ("exaone4", exaone4::build, HF),
    ("falcon_h1", falcon_h1::build, HF),
    ("gemma", gemma::build, HF),
    ("gemma2", gemma2::build, HF),
    ("gemma3", gemma3::build_multimodal, "as `gemma3_text`"),
    ("gemma3_text", gemma3::build, HF_AND_MLX),
    ("gemma3n", gemma3n::build_multimodal, "as `gemma3n_text`"),
    ("gemma3n_text", gemma3n::build, HF),
    ("gemma4", gemma4::build_multimodal, "as `gemma4_text`"),
    ("gemma4_text", gemma4::build, HF_AND_MLX),
    ("gemma4_unified", gemma4::build_multimodal, "as `gemma4_unified_text`"),
    ("gemma4_unified_text", gemma4::build_unified, HF),
    ("glm4", glm4::build, HF),
    ("glm4_moe", glm4_moe::build, HF_AND_MLX),
    ("glm4_moe_lite", deepseek_v3::build_flash, HF),
    ("gpt_oss", gpt_oss::build, HF_AND_MLX),
    ("granite", granite::build, HF),
    ("granitemoehybrid", granitemoehybrid::build, HF),
    ("hunyuan_v1_dense", hunyuan_v1_dense::build, HF),
    ("kimi_k2", deepseek_v3::build_v3, "as `deepseek_v3`"),
    ("kimi_linear", kimi_linear::build, HF),
    ("laguna", laguna::build, HF),
    ("lfm2", lfm2::build, HF),
    ("lfm2_moe", lfm2::build_moe, HF),
    ("lfm3", lfm3::build, HF),
    ("llama", llama::build, HF_AND_MLX),
    ("llama4", llama4::build_multimodal, "as `llama4_text`"),
    ("llama4_text", llama4::build, HF),
    ("mellum", mellum::build, HF),
    ("minimax_m2", minimax_m2::build, HF),
    ("ministral3", ministral3::build, HF),
    ("mistral", mistral::build, HF),
    ("mistral3", wrapper::build_mistral3, "as its `text_config`"),
    ("mistral4", deepseek_v3::build_mistral4, HF),
    ("mixtral", mixtral::build, HF),
    ("muse_glimmer", muse_glimmer::build_multimodal, HF),
    ("muse_glimmer_text", muse_glimmer::build, "as `muse_glimmer`"),
    ("nemotron_h", nemotron_h::build, HF),
    ("olmo2", olmo2::build, HF),
    ("olmo3", olmo3::build, HF),
    ("phi3", phi3::build, HF),
    ("qwen2", qwen2::build, HF_AND_MLX),
    ("qwen2_moe", qwen2_moe::build, HF),
    ("qwen3", qwen3::build, HF_AND_MLX),
    ("qwen3_5", qwen3_5::build, HF_AND_MLX),
    ("qwen3_5_moe", qwen3_5::build_moe, "as `qwen3_5_moe_text`"),
    ("qwen3_5_moe_text", qwen3_5::build_moe, HF),
    ("qwen3_5_text", qwen3_5::build, "as `qwen3_5`"),
    ("qwen3_moe", qwen3_moe::build, HF_AND_MLX),
    ("qwen3_next", qwen3_next::build, HF),
    ("seed_oss", seed_oss::build, HF),
    ("smollm3", smollm3::build, HF),
    ("starcoder2", starcoder2::build, HF),
];

/// Where checkpoints of these have heads for predicting further tokens, if they do.
const HEADS: &[(&str, HeadPlace)] = &[
    ("deepseek_v3", HeadPlace::Behind),
    ("glm4_moe", HeadPlace::Behind),
    ("glm4_moe_lite", HeadPlace::Behind),
    ("kimi_k2", HeadPlace::Behind),
    ("mellum", HeadPlace::Apart { attention: "sliding_attention" }),
    ("qwen3_5", QWEN_HEAD),
    ("qwen3_5_moe", QWEN_HEAD),
    ("qwen3_5_moe_text", QWEN_HEAD),
    ("qwen3_5_text", QWEN_HEAD),
    ("qwen3_next", QWEN_HEAD),
];

const QWEN_HEAD: HeadPlace = HeadPlace::Apart { attention: "full_attention" };

/// Second names of fields, by HF's `attribute_map`: of an architecture the second name, and the usual one.
/// A config that has both means the second.
const SECOND_NAMES: &[(&str, &str, &str)] = &[
    ("deepseek_v2", "num_experts", "n_routed_experts"),
    ("deepseek_v3", "num_local_experts", "n_routed_experts"),
    ("deepseek_v3", "num_mtp_layers", "num_nextn_predict_layers"),
    ("ernie4_5_moe", "num_experts", "moe_num_experts"),
    ("ernie4_5_moe", "num_experts_per_tok", "moe_k"),
    ("glm4_moe", "num_local_experts", "n_routed_experts"),
    ("glm4_moe", "num_mtp_layers", "num_nextn_predict_layers"),
    ("glm4_moe_lite", "num_local_experts", "n_routed_experts"),
    ("gpt_oss", "num_experts", "num_local_experts"),
    ("kimi_k2", "num_local_experts", "n_routed_experts"),
    ("kimi_k2", "num_mtp_layers", "num_nextn_predict_layers"),
    ("kimi_linear", "model_max_length", "max_position_embeddings"),
    ("kimi_linear", "moe_renormalize", "norm_topk_prob"),
    ("kimi_linear", "num_expert_group", "n_group"),
    ("kimi_linear", "num_experts", "n_routed_experts"),
    ("kimi_linear", "num_experts_per_token", "num_experts_per_tok"),
    ("kimi_linear", "num_local_experts", "n_routed_experts"),
    ("kimi_linear", "num_shared_experts", "n_shared_experts"),
    ("lfm3", "rms_norm_eps", "norm_eps"),
    ("mellum", "num_local_experts", "num_experts"),
    ("minimax_m2", "num_experts", "num_local_experts"),
    ("mistral4", "num_local_experts", "n_routed_experts"),
    ("mixtral", "num_experts", "num_local_experts"),
    ("nemotron_h", "num_local_experts", "n_routed_experts"),
    ("qwen3_moe", "num_local_experts", "num_experts"),
];

/// The config with its fields under their usual names.
pub(crate) fn with_usual_names(config: &Config) -> Result<Config> {
    let model_type = config.str("model_type")?;
    let names = SECOND_NAMES.iter().filter(|(of, ..)| Some(*of) == model_type);
    Ok(names.fold(config.clone(), |config, (_, second, usual)| config.renamed(second, usual)))
}

/// An architecture that can be loaded.
///
/// See the example of [`supported`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Supported {
    /// HF's name of it, as `config.json` has it.
    pub model_type: &'static str,
    /// What its log-probabilities and tokens were checked against, on models of random weights: the
    /// references by name, or the `model_type` whose graph it is.
    pub checked_against: &'static str,
}

/// The architectures that can be loaded, in alphabetical order.
///
/// ```
/// let qwen3 = mlxgk_mlx_models::supported().find(|it| it.model_type == "qwen3").unwrap();
/// assert!(qwen3.checked_against.starts_with("transformers"));
/// ```
pub fn supported() -> impl Iterator<Item = Supported> {
    FAMILIES
        .iter()
        .map(|&(model_type, _, checked_against)| Supported { model_type, checked_against })
}

/// HF's names of the architectures that can be loaded, in alphabetical order.
///
/// ```
/// assert!(mlxgk_mlx_models::model_types().any(|it| it == "qwen3"));
/// ```
pub fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, ..)| *name)
}

fn find(config: &Config) -> Result<Build> {
    let wanted = config
        .require("model_type", |config, key| config.str(key).map(|it| it.map(str::to_owned)))?;
    let found = FAMILIES.iter().find(|(name, ..)| *name == wanted);
    found.map(|(_, build, _)| *build).ok_or_else(|| {
        let known: Vec<&str> = model_types().collect();
        config.error(
            "model_type",
            format_args!(
                "is \"{}\", which is not supported; known are {}",
                shortened(&wanted),
                known.join(", ")
            ),
        )
    })
}

/// Where checkpoints of the config's `model_type` have heads for predicting further tokens.
pub(crate) fn head_place(config: &Config) -> Result<Option<HeadPlace>> {
    let model_type = config.str("model_type")?;
    Ok(HEADS.iter().find(|(name, _)| Some(*name) == model_type).map(|(_, place)| *place))
}

/// Refuses an unknown `model_type`.
pub(crate) fn check(config: &Config) -> Result<()> {
    find(config).map(|_| ())
}

/// Builds the model that the config describes.
pub(crate) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let config = &with_usual_names(config)?;
    let decoder = find(config)?(config, weights)?;
    unread::check(config)?;
    Ok(decoder)
}

/// What every family's file uses.
mod prelude {
    pub(super) use mlxgk_kv_cache::LayerSpec;

    pub(super) use super::{assemble, dense_block, mlp, rope, spec};
    pub(super) use crate::{
        Decoder, Result,
        block::Norms,
        config::{Config, Defaults, Dims, Heads},
        decoder::DecoderOptions,
        mlp::MlpOptions,
        norm::NormWeight,
        self_attention::AttentionOptions,
        weights::Weights,
    };
}

/// Builds the blocks, each at its name (`model.layers.3`), and the parts around them.
fn assemble(
    model_type: &str,
    dims: Dims,
    weights: Weights,
    form: NormWeight,
    options: DecoderOptions,
    block: impl FnMut(&mut Weights, &str, usize) -> Result<Box<dyn Block>>,
) -> Result<Decoder> {
    assemble_before(model_type, dims, weights, ("model.norm", form), options, block)
}

/// As [`assemble`], before a final norm of another name.
fn assemble_before(
    model_type: &str,
    dims: Dims,
    mut weights: Weights,
    (norm, form): (&str, NormWeight),
    options: DecoderOptions,
    mut block: impl FnMut(&mut Weights, &str, usize) -> Result<Box<dyn Block>>,
) -> Result<Decoder> {
    let blocks = (0..dims.layers)
        .map(|layer| {
            let at = weights.block(layer);
            block(&mut weights, &at, layer)
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = weights.last_norm(norm);
    let norm = weights.norm(&norm, dims.hidden, dims.eps, form)?;
    load::assemble(model_type, dims, weights, norm, blocks, options)
}

/// A block of attention and one gated feed-forward layer, under HF's usual names.
fn dense_block(
    weights: &mut Weights,
    at: &str,
    dims: &Dims,
    norms: (Norms, NormWeight),
    attention: AttentionOptions,
    mlp: MlpOptions,
) -> Result<Box<dyn Block>> {
    let mlp = GatedMlp::load(weights, &format!("{at}.mlp"), dims.hidden, mlp)?;
    block(weights, at, dims, norms, attention, FeedForward::Gated { mlp })
}

/// As [`dense_block`], around another feed-forward half.
fn block(
    weights: &mut Weights,
    at: &str,
    dims: &Dims,
    norms: (Norms, NormWeight),
    attention: AttentionOptions,
    feed_forward: FeedForward,
) -> Result<Box<dyn Block>> {
    Ok(Box::new(transformer_block(weights, at, dims, norms, attention, feed_forward)?))
}

/// As [`block`], for a family that changes something about it.
fn transformer_block(
    weights: &mut Weights,
    at: &str,
    dims: &Dims,
    norms: (Norms, NormWeight),
    attention: AttentionOptions,
    feed_forward: FeedForward,
) -> Result<TransformerBlock> {
    let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), dims, attention)?;
    let mixer = Mixer::Attention { attention };
    TransformerBlock::load(weights, at, dims, norms, mixer, feed_forward)
}

/// One rotary embedding for all layers and the whole of each head.
fn rope(config: &Config, dims: &Dims, heads: Heads) -> Result<Rope> {
    Rope::new(&RopeParameters::read(config, dims.max_positions)?, heads.dim, heads.dim)
}

/// A family's rotary embedding, where the config leaves it open.
#[derive(Debug, Clone, Copy)]
struct RopeStyle {
    theta: f64,
    /// The part of each head that is rotated; `None`: the whole, whatever the config says.
    part: Option<f64>,
    /// Whether neighbouring dimensions are a pair.
    interleaved: bool,
}

impl RopeStyle {
    const fn of_theta(theta: f64) -> Self {
        Self { theta, part: None, interleaved: false }
    }
}

/// One rotary embedding for all layers, in a family's style.
fn styled_rope(config: &Config, dims: &Dims, heads: Heads, style: RopeStyle) -> Result<Rope> {
    let mut parameters = RopeParameters::with_default(config, dims.max_positions, style.theta)?;
    let rotated = match style.part {
        None => heads.dim,
        Some(part) => parameters.rotated(config, heads.dim, part)?,
    };
    let build = if style.interleaved { Rope::interleaved } else { Rope::new };
    build(&parameters, heads.dim, rotated)
}

/// The rotary embedding of layers of a `kind`, which `rope_parameters` has a dictionary for; without
/// `rope_parameters`, of this theta and on this part of each head. Other forms are not known.
fn rope_of_kind(
    config: &Config,
    dims: &Dims,
    heads: Heads,
    kind: &str,
    (theta, part): (f64, f64),
) -> Result<Rope> {
    let key = "rope_parameters";
    let (scaling, part) = match config.object(key)? {
        None => (config.empty(key), part),
        Some(kinds) => match kinds.object(kind)? {
            None => return Err(config.error(key, format_args!("holds no `{kind}`"))),
            Some(scaling) => (scaling, 1.0),
        },
    };
    let mut parameters = RopeParameters::new(config, Some(scaling), theta, dims.max_positions)?;
    let rotated = parameters.rotated(config, heads.dim, part)?;
    Rope::new(&parameters, heads.dim, rotated)
}

/// The rotary embedding of each layer, by whether it `slides`: [`rope_of_kind`] with what full and sliding
/// layers have by default.
fn ropes_by_kind(
    config: &Config,
    dims: &Dims,
    heads: Heads,
    slides: &[bool],
    [full, local]: [(f64, f64); 2],
) -> Result<Vec<Rope>> {
    let of = |kind: &str, default, is_local: bool| {
        let is_there = slides.contains(&is_local);
        is_there.then(|| rope_of_kind(config, dims, heads, kind, default)).transpose()
    };
    let full = of("full_attention", full, false)?;
    let local = of("sliding_attention", local, true)?;
    // One of the two is there for each layer.
    Ok(slides.iter().filter_map(|&it| if it { local.clone() } else { full.clone() }).collect())
}

/// The growth of queries that a rotary embedding's dictionary names.
fn growth(config: &Config, dims: &Dims) -> Result<Growth> {
    let parameters = RopeParameters::read(config, dims.max_positions)?;
    let (scaling, key) = (parameters.scaling(), "original_max_position_embeddings");
    let context = scaling.require(key, Config::usize)?;
    if context == 0 {
        return Err(scaling.error(key, "must be above 0"));
    }
    Ok(Growth { beta: scaling.require("llama_4_scaling_beta", Config::f32)?, context, ahead: 0 })
}

/// How many experts there are, and how many a token is fed to: the fields, with what a family has where
/// they are absent.
fn chosen_of(
    config: &Config,
    (of_all, all): (&str, usize),
    (of_chosen, chosen): (&str, usize),
) -> Result<(usize, usize)> {
    let all = config.usize(of_all)?.unwrap_or(all);
    let chosen = config.usize(of_chosen)?.unwrap_or(chosen);
    if all > 0 && !(1..=all).contains(&chosen) {
        let what = format_args!("is {chosen}, with {all} experts");
        return Err(config.error(of_chosen, what));
    }
    Ok((all, chosen))
}

/// A gated feed-forward layer without biases.
fn mlp(config: &Config, activation: &str, default: &str) -> Result<MlpOptions> {
    let activation = Activation::read(config, activation, default)?;
    Ok(MlpOptions::new(config.size("intermediate_size")?, activation))
}

/// A cap: absent is the class's default, `null` is none.
fn soft_cap(config: &Config, key: &str, default: Option<f32>) -> Result<Option<f32>> {
    if config.has(key) { config.f32(key) } else { Ok(default) }
}

/// A window of `window` tokens, or everything.
fn spec(window: Option<usize>) -> LayerSpec {
    window.map_or(LayerSpec::Full, |window| LayerSpec::Sliding { window })
}

/// A window size, which must be above 0; absent: `default`, `null`: none.
fn window(config: &Config, default: Option<usize>) -> Result<Option<usize>> {
    let key = "sliding_window";
    match config.usize(key)? {
        Some(0) => Err(config.error(key, "must be above 0")),
        None if config.has(key) => Ok(None),
        found => Ok(found.or(default)),
    }
}

/// Which layers slide: `layer_types` where the config has it, else the family's own rule.
fn sliding_layers(config: &Config, dims: &Dims, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let known = [("sliding_attention", true), ("full_attention", false)];
    layer_kinds(config, dims, "layer_types", &known, rule)
}

/// The kind of each layer: by the names in the list `key` where the config has it, else by the family's
/// own rule. A name that is not among the `known` ones is refused.
fn layer_kinds<T: Copy>(
    config: &Config,
    dims: &Dims,
    key: &str,
    known: &[(&str, T)],
    rule: impl Fn(usize) -> T,
) -> Result<Vec<T>> {
    let names = config.list(key, "a list of names", |it| it.as_str().map(str::to_owned))?;
    let Some(names) = names else { return Ok((0..dims.layers).map(rule).collect()) };
    if names.len() != dims.layers {
        let what = format!("has {} entries for {} layers", names.len(), dims.layers);
        return Err(config.error(key, what));
    }
    let kind = |(layer, name): (usize, &String)| {
        let found = known.iter().find(|(it, _)| it == name);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            let known: Vec<&str> = known.iter().map(|(it, _)| *it).collect();
            let (name, known) = (shortened(name), known.join(" and "));
            let what = format_args!("calls layer {layer} \"{name}\"; known are {known}");
            config.error(key, what)
        })
    };
    names.iter().enumerate().map(kind).collect()
}

/// Qwen's windows: the size, if `use_sliding_window` is on, and which layers have it: those from
/// `max_window_layers` on, unless `layer_types` says otherwise.
fn qwen_windows(config: &Config, dims: &Dims) -> Result<Vec<LayerSpec>> {
    if !config.bool("use_sliding_window")?.unwrap_or(false) {
        return Ok(vec![LayerSpec::Full; dims.layers]);
    }
    let first = config.usize("max_window_layers")?.unwrap_or(28);
    let window = window(config, Some(4096))?;
    let sliding = sliding_layers(config, dims, |layer| layer >= first)?;
    Ok(sliding.into_iter().map(|slides| spec(window.filter(|_| slides))).collect())
}
