//! The families: one file each, which reads HF's config fields and builds the blocks.

mod gemma;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;

use mlxgk_kv_cache::LayerSpec;

use crate::{
    Decoder, Result,
    activation::Activation,
    block::{AttentionOptions, Block, FeedForward, Mixer, Norms, SelfAttention, TransformerBlock},
    config::{Config, Dims, Heads},
    decoder::DecoderOptions,
    input::shortened,
    load,
    mlp::{GatedMlp, MlpOptions},
    norm::NormWeight,
    rope::{Rope, RopeParameters},
    weights::Weights,
};

type Build = fn(&Config, Weights) -> Result<Decoder>;

/// Every `model_type` that [`Decoder::load`] knows.
const FAMILIES: [(&str, Build); 15] = [
    ("gemma", gemma::build),
    ("gemma2", gemma2::build),
    ("gemma3", gemma3::build_multimodal),
    ("gemma3_text", gemma3::build),
    ("llama", llama::build),
    ("mistral", mistral::build),
    ("phi3", phi3::build),
    ("qwen2", qwen2::build),
    ("qwen3", qwen3::build),
    ("qwen3_5", qwen3_5::build),
    ("qwen3_5_moe", qwen3_5::build_moe),
    ("qwen3_5_moe_text", qwen3_5::build_moe),
    ("qwen3_5_text", qwen3_5::build),
    ("qwen3_moe", qwen3_moe::build),
    ("qwen3_next", qwen3_next::build),
];

/// HF's names of the architectures that can be loaded, in alphabetical order.
///
/// ```
/// assert!(mlxgk_mlx_models::model_types().any(|it| it == "qwen3"));
/// ```
pub fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

fn find(config: &Config) -> Result<Build> {
    let wanted = config
        .require("model_type", |config, key| config.str(key).map(|it| it.map(str::to_owned)))?;
    let found = FAMILIES.iter().find(|(name, _)| *name == wanted);
    found.map(|(_, build)| *build).ok_or_else(|| {
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

/// Refuses an unknown `model_type`.
pub(crate) fn check(config: &Config) -> Result<()> {
    find(config).map(|_| ())
}

/// Builds the model that the config describes.
pub(crate) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    find(config)?(config, weights)
}

/// What every family's file uses.
mod prelude {
    pub(super) use mlxgk_kv_cache::LayerSpec;

    pub(super) use super::{assemble, dense_block, mlp, rope, spec};
    pub(super) use crate::{
        Decoder, Result,
        block::{AttentionOptions, Norms},
        config::{Config, Defaults, Dims, Heads},
        decoder::DecoderOptions,
        mlp::MlpOptions,
        norm::NormWeight,
        weights::Weights,
    };
}

/// Builds the blocks, each at its name (`model.layers.3`), and the parts around them.
fn assemble(
    model_type: &str,
    dims: Dims,
    mut weights: Weights,
    form: NormWeight,
    options: DecoderOptions,
    mut block: impl FnMut(&mut Weights, &str, usize) -> Result<Box<dyn Block>>,
) -> Result<Decoder> {
    let blocks = (0..dims.layers)
        .map(|layer| block(&mut weights, &format!("model.layers.{layer}"), layer))
        .collect::<Result<Vec<_>>>()?;
    let norm = weights.norm("model.norm", dims.hidden, dims.eps, form)?;
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
    let attention = SelfAttention::load(weights, &format!("{at}.self_attn"), dims, attention)?;
    let mixer = Mixer::Attention { attention };
    Ok(Box::new(TransformerBlock::load(weights, at, dims, norms, mixer, feed_forward)?))
}

/// One rotary embedding for all layers and the whole of each head.
fn rope(config: &Config, dims: &Dims, heads: Heads) -> Result<Rope> {
    Rope::new(&RopeParameters::read(config, dims.max_positions)?, heads.dim, heads.dim)
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
