//! The families: one file each, which reads HF's config fields and builds the blocks.

mod gemma;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;

use mlxgk_kv_cache::LayerSpec;

use crate::{
    Decoder, Error, ErrorKind, Result,
    block::Block,
    config::{Config, Dims},
    decoder::DecoderOptions,
    norm::NormWeight,
    weights::Weights,
};

type Build = fn(&Config, Weights) -> Result<Decoder>;

/// Every `model_type` that [`Decoder::load`] knows.
const FAMILIES: [(&str, Build); 10] = [
    ("gemma", gemma::build),
    ("gemma2", gemma2::build),
    ("gemma3", gemma3::build_multimodal),
    ("gemma3_text", gemma3::build),
    ("llama", llama::build),
    ("mistral", mistral::build),
    ("phi3", phi3::build),
    ("qwen2", qwen2::build),
    ("qwen3", qwen3::build),
    ("qwen3_moe", qwen3_moe::build),
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
            format_args!("is {wanted:?}, which is not supported; known are {}", known.join(", ")),
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

/// Builds `dims.layers` blocks and the parts around them.
fn assemble(
    model_type: &str,
    dims: Dims,
    mut weights: Weights,
    stored: NormWeight,
    options: DecoderOptions,
    mut block: impl FnMut(&mut Weights, usize) -> Result<(LayerSpec, Box<dyn Block>)>,
) -> Result<Decoder> {
    let blocks =
        (0..dims.layers).map(|layer| block(&mut weights, layer)).collect::<Result<Vec<_>>>()?;
    let norm = weights.norm("model.norm", &dims, stored)?;
    Decoder::assemble(model_type, dims, weights, norm, blocks, options)
}

/// The name under which a layer's tensors stand.
fn layer_name(layer: usize) -> String {
    format!("model.layers.{layer}")
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
    let known = |value: &serde_json::Value| match value.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let kinds = "a list of \"full_attention\" and \"sliding_attention\"";
    match config.list("layer_types", kinds, known)? {
        None => Ok((0..dims.layers).map(rule).collect()),
        Some(types) if types.len() == dims.layers => Ok(types),
        Some(types) => Err(Error::new(
            ErrorKind::Config,
            format!(
                "{}: `layer_types` has {} entries for {} layers",
                config.name(),
                types.len(),
                dims.layers
            ),
        )),
    }
}
