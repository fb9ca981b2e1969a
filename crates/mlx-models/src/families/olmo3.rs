//! OLMo 3 (HF `Olmo3ForCausalLM`): OLMo 2 with windows, whose layers are not scaled.

use super::{olmo2, prelude::*, sliding_layers, window};
use crate::rope::{Rope, RopeParameters};

const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_dim: None, eps: 1e-5, tied: false, max_positions: 2048 };

const THETA: f64 = 500_000.0;

pub(super) fn build(config: &Config, weights: Weights) -> Result<Decoder> {
    let dims = Dims::read(config, &DEFAULTS)?;
    let heads = Heads::read(config, &DEFAULTS, dims.hidden)?;
    let window = window(config, Some(4096))?;
    let sliding = sliding_layers(config, &dims, |layer| !(layer + 1).is_multiple_of(4))?;
    let kinds = ["full_attention", "sliding_attention"];
    let nested = config.object("rope_parameters")?;
    if nested.as_ref().is_some_and(|it| kinds.iter().all(|kind| !it.has(kind))) {
        let what = "must hold `full_attention` and `sliding_attention`";
        return Err(config.error("rope_parameters", what));
    }
    let scaling = config.object("rope_scaling")?.filter(|it| it.entries().next().is_some());
    let theta = config.positive("rope_theta")?.unwrap_or(THETA);
    // As in HF, the theta beside the dictionaries is for the full layers alone.
    let [full, local] = [(kinds[0], scaling, theta), (kinds[1], None, THETA)].map(
        |(kind, scaling, theta)| -> Result<Rope> {
            let of_kind = nested.as_ref().map_or(Ok(None), |it| it.object(kind))?;
            let parameters =
                RopeParameters::new(config, scaling.or(of_kind), theta, dims.max_positions)?;
            Rope::new(&parameters, heads.dim, heads.dim)
        },
    );
    let (full, local) = (full?, local?);
    olmo2::build_with("olmo3", config, weights, dims, heads, |layer| match sliding[layer] {
        true => (spec(window), local.clone()),
        false => (spec(None), full.clone()),
    })
}
