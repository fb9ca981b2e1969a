//! mlx-lm's files: both matrices transposed (of experts, as they are), the scale itself, and adapted blocks
//! counted from the last.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use mlx_rs::Array;
use mlxgk_mlx_models::{Adapter, Decoder};
use serde_json::{Value, json};

use super::{CONFIG, LONGEST, Parts, assemble, lora::layer_of, transposed};
use crate::{Error, ErrorKind, Result, files, files::failed};

const WEIGHTS: &str = "adapters.safetensors";

pub(super) fn read(folder: &Path, config: &Value) -> Result<Vec<(String, Adapter)>> {
    let about = |what: String| failed(&folder.join(CONFIG), what);
    match config["fine_tune_type"].as_str() {
        None | Some("lora" | "dora") => {}
        Some(other) => {
            return Err(about(format!(
                "fine_tune_type is {other:?}; adapters are \"lora\" or \"dora\""
            )));
        }
    }
    let scale = &config["lora_parameters"]["scale"];
    let scale = scale
        .as_f64()
        .ok_or_else(|| about(format!("lora_parameters.scale is {scale}, expected a number")))?;
    let file = folder.join(WEIGHTS);
    let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
    for (name, array) in files::read(&file, LONGEST)?.arrays {
        let Some((path, part)) = name.rsplit_once('.') else {
            return Err(failed(&file, format_args!("`{name}` does not belong to an adapter")));
        };
        let turned = |array: &Array| match array.ndim() {
            3 => Ok(array.clone()),
            _ => transposed(&file, &name, array),
        };
        let parts = parts.entry(path.to_owned()).or_default();
        match part {
            "lora_a" => parts.a = Some(turned(&array)?),
            "lora_b" => parts.b = Some(turned(&array)?),
            "m" => parts.magnitude = Some(array),
            _ => return Err(failed(&file, format_args!("`{name}` does not belong to an adapter"))),
        }
    }
    assemble(&file, parts, |_, _| scale as f32)
}

type Written = (&'static str, Vec<(String, Array)>, Value);

pub(super) fn write(decoder: &Decoder, adapters: &[(&str, &Adapter)]) -> Result<Written> {
    let refuse = |what: String| Err(Error::new(ErrorKind::Adapter, what));
    let (first, rank_of) = (adapters[0].1, Adapter::rank);
    let (mut tensors, mut by_layer) = (Vec::new(), BTreeMap::<usize, BTreeSet<&str>>::new());
    for &(path, adapter) in adapters {
        let same = rank_of(adapter) == rank_of(first)
            && adapter.scale() == first.scale()
            && adapter.magnitude().is_some() == first.magnitude().is_some();
        if !same {
            return refuse(
                "mlx-lm has one rank, scale and kind for all adapters of a model".to_owned(),
            );
        }
        let Some(layer) = layer_of(path) else {
            return refuse(format!(
                "mlx-lm cannot hold an adapter for `{path}`, outside the blocks"
            ));
        };
        let key = path.split_once(&format!("layers.{layer}.")).map_or(path, |it| it.1);
        by_layer.entry(layer).or_default().insert(key);
        for (name, array) in [("lora_a", adapter.a()), ("lora_b", adapter.b())] {
            let stored = if array.ndim() == 3 { array.clone() } else { array.t().contiguous()? };
            tensors.push((format!("{path}.{name}"), stored));
        }
        if let Some(magnitude) = adapter.magnitude() {
            tensors.push((format!("{path}.m"), magnitude.clone()));
        }
    }
    let layers = decoder.layers().len();
    let lowest = by_layer.keys().next().copied().unwrap_or(layers);
    // Blocks without one of the products (a dense layer among mixtures) are left out by mlx-lm, too.
    let keys: BTreeSet<&str> = by_layer.values().flatten().copied().collect();
    let all = decoder.products();
    let meant = |layer: usize| {
        let at = format!("layers.{layer}.");
        let of_layer = |path: &str| path.split_once(&at).is_some_and(|it| keys.contains(it.1));
        all.iter().filter(|it| of_layer(it.path())).count()
    };
    let adapted = |layer: usize| by_layer.get(&layer).map_or(0, BTreeSet::len);
    let last = (lowest..layers).all(|layer| adapted(layer) == meant(layer));
    if !last {
        return refuse(
            "mlx-lm adapts the same products of the last blocks, and of no others".to_owned(),
        );
    }
    let dora = first.magnitude().is_some();
    let config = json!({
        "fine_tune_type": if dora { "dora" } else { "lora" },
        "num_layers": layers - lowest,
        "lora_parameters": {
            "rank": rank_of(first),
            "scale": first.scale(),
            "dropout": 0.0,
            "keys": keys,
        },
    });
    Ok((WEIGHTS, tensors, config))
}
