//! New adapters, which begin without effect.

use mlx_rs::Array;
use mlxgk_mlx_models::{Adapter, Decoder};
use mlxgk_torch::TorchRng;

use crate::{Error, Result};

/// How a model is adapted.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_training::{LoraConfig, attach_lora};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let config = LoraConfig {
///     rank: 4,
///     targets: vec!["q_proj".into(), "v_proj".into()],
///     layers: vec![0, 1],
///     ..LoraConfig::default()
/// };
/// let adapted = attach_lora(&mut model, &config)?;
/// assert_eq!(adapted.len(), 4);
/// assert!(adapted.contains(&"model.layers.1.self_attn.v_proj".to_owned()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Columns of the low-rank matrices.
    pub rank: usize,
    /// The addition is scaled by `alpha / rank`.
    pub alpha: f32,
    /// By `alpha / √rank` instead (rsLoRA, Kalajdzievski, 2023).
    pub rank_stabilized: bool,
    /// Learns the lengths of the rows apart from their directions (DoRA, Liu et al., 2024).
    pub dora: bool,
    /// Products by the end of their names, as PEFT's `target_modules` in a list: `q_proj`, or of a mixture's
    /// experts `switch_mlp.up_proj`. Empty for all products of the blocks, routers and experts of mixtures
    /// excepted.
    pub targets: Vec<String>,
    /// The blocks to adapt, from 0; empty for all.
    pub layers: Vec<usize>,
    /// Where the draw of A begins.
    pub seed: u64,
}

impl Default for LoraConfig {
    /// Rank 8, alpha 16, everywhere.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            rank_stabilized: false,
            dora: false,
            targets: Vec::new(),
            layers: Vec::new(),
            seed: 0,
        }
    }
}

/// Sets new adapters on a model: A drawn uniformly from ±1/√in (PEFT's `kaiming_uniform` with √5), B zero,
/// so that nothing changes at first. Returns the names of the products.
///
/// # Errors
/// When a setting is out of range, a target is the end of no product's name, or MLX fails. A rank above
/// both sides of a matrix is refused.
pub fn attach_lora(decoder: &mut Decoder, config: &LoraConfig) -> Result<Vec<String>> {
    if config.rank == 0 || !config.alpha.is_finite() {
        let (rank, alpha) = (config.rank, config.alpha);
        return Err(Error::config(format!("an adapter of rank {rank} with alpha {alpha}")));
    }
    let ends = |path: &str, target: &str| {
        path == target || path.strip_suffix(target).is_some_and(|it| it.ends_with('.'))
    };
    let mut products: Vec<(String, Vec<usize>)> =
        decoder.products().iter().map(|it| (it.path().to_owned(), it.shape())).collect();
    for target in &config.targets {
        if !products.iter().any(|(path, _)| ends(path, target)) {
            let mut of_experts = false;
            decoder.visit_parameters(|it| {
                let path = it.path.strip_suffix(".weight").unwrap_or(it.path);
                let is_expert = path.contains(".switch_mlp.") || path.contains(".experts.");
                of_experts |= is_expert && ends(path, target);
            });
            let why = match of_experts {
                true => format!(
                    "`{target}` are a mixture's experts in one tensor, which cannot be adapted"
                ),
                false => format!("no product of the model ends in `{target}`"),
            };
            return Err(Error::config(why));
        }
    }
    let is_chosen = |path: &str, shape: &[usize]| {
        let layer = layer_of(path);
        let of_layers =
            config.layers.is_empty() || layer.is_some_and(|it| config.layers.contains(&it));
        let is_target = match config.targets.is_empty() {
            true => {
                layer.is_some()
                    && shape.len() == 2
                    && !ROUTERS.iter().any(|router| path.ends_with(router))
            }
            false => config.targets.iter().any(|target| ends(path, target)),
        };
        of_layers && is_target
    };
    products.retain(|(path, shape)| is_chosen(path, shape));
    let too_small = |(_, shape): &&(String, Vec<usize>)| {
        shape.iter().rev().take(2).all(|side| *side < config.rank)
    };
    if let Some((path, shape)) = products.iter().find(too_small)
        && let [.., out, columns] = shape[..]
    {
        let rank = config.rank;
        let what = format!("the rank {rank} is above both sides of `{path}`, {out} × {columns}");
        return Err(Error::config(what));
    }
    let of_experts = |(_, shape): &&(String, Vec<usize>)| shape.len() > 2;
    if config.dora
        && let Some((path, _)) = products.iter().find(of_experts)
    {
        let what = format!("DoRA of a mixture's experts (`{path}`) is not supported");
        return Err(Error::config(what));
    }
    let mut rng = TorchRng::new(config.seed);
    let scale = match config.rank_stabilized {
        true => config.alpha / (config.rank as f32).sqrt(),
        false => config.alpha / config.rank as f32,
    };
    let mut adapted = Vec::new();
    for (path, shape) in products {
        let (experts, [out, columns]) = match *shape.as_slice() {
            [out, columns] => (None, [out, columns]),
            [experts, out, columns] => (Some(experts), [out, columns]),
            _ => continue,
        };
        let bound = 1.0 / (columns as f32).sqrt();
        let draw = |_| (2.0 * rng.uniform_f32() - 1.0) * bound;
        let of_experts = |rows: usize, columns: usize| -> Vec<i32> {
            experts.into_iter().chain([rows, columns]).map(|it| it as i32).collect()
        };
        let count = experts.unwrap_or(1) * config.rank;
        let a: Vec<f32> = (0..count * columns).map(draw).collect();
        let a = Array::from_slice(&a, &of_experts(config.rank, columns));
        let b = vec![0.0_f32; count * out];
        let b = Array::from_slice(&b, &of_experts(out, config.rank));
        let Some(product) = decoder.product_mut(&path) else { continue };
        let mut adapter = Adapter::new(a, b, scale)?;
        if config.dora {
            product.clear_adapter();
            let lengths = product.merged()?.square()?.sum_axis(-1, false)?.sqrt()?;
            adapter = adapter.with_magnitude(lengths)?;
        }
        product.set_adapter(adapter)?;
        adapted.push(path);
    }
    if adapted.is_empty() {
        return Err(Error::config("no product of the model is to be adapted"));
    }
    Ok(adapted)
}

/// How the names of routers end.
const ROUTERS: [&str; 3] = [".gate", ".router", ".shared_expert_gate"];

/// `model.layers.4.mlp.up_proj`: 4.
pub(super) fn layer_of(path: &str) -> Option<usize> {
    let (_, after) = path.split_once("layers.")?;
    after.split('.').next()?.parse().ok()
}
