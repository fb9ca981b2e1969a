//! PEFT's files.

use std::{collections::BTreeMap, path::Path};

use mlx_rs::Array;
use mlxgk_mlx_models::{Adapter, Decoder};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::{CONFIG, LONGEST, Parts, assemble, experts, lora::layer_of, transposed};
use crate::{Error, ErrorKind, Result, files, files::failed};

pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// What of a config changes the result, and is not supported unless it is empty.
const UNSUPPORTED: [&str; 8] = [
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
];

pub(super) fn read(
    decoder: &Decoder,
    folder: &Path,
    config: &Value,
) -> Result<Vec<(String, Adapter)>> {
    let about = |what: String| failed(&folder.join(CONFIG), what);
    if config["peft_type"] != "LORA" {
        let kind = &config["peft_type"];
        return Err(about(format!("peft_type is {kind}; adapters are \"LORA\"")));
    }
    for field in UNSUPPORTED {
        let value = &config[field];
        let is_unset = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(it) => it.is_empty(),
            Value::Object(it) => it.is_empty(),
            _ => false,
        };
        if !is_unset {
            return Err(about(format!("{field} is {value}, which is not supported")));
        }
    }
    if !matches!(config["bias"].as_str(), None | Some("none")) {
        return Err(about(format!("bias is {}, which is not supported", config["bias"])));
    }
    let number = |field: &str| {
        let value = config[field].as_f64();
        value.ok_or_else(|| about(format!("{field} is {}, expected a number", config[field])))
    };
    let (alpha, rank) = (number("lora_alpha")?, number("r")?);
    let is_stabilized = config["use_rslora"] == true;
    let patterns = |field: &str| -> Result<Vec<(Regex, f64)>> {
        let entries = config[field].as_object().into_iter().flatten();
        let pattern = |(name, value): (&String, &Value)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({name})$")).ok();
            regex.zip(value.as_f64()).ok_or_else(|| about(format!("{field} has a wrong {name:?}")))
        };
        entries.map(pattern).collect()
    };
    let (alphas, ranks) = (patterns("alpha_pattern")?, patterns("rank_pattern")?);
    let of = |patterns: &[(Regex, f64)], path: &str, default: f64| {
        patterns.iter().find(|(it, _)| it.is_match(path)).map_or(default, |it| it.1)
    };

    let file = folder.join(WEIGHTS);
    let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
    for (name, array) in files::read(&file, LONGEST)?.arrays {
        let path = name.strip_prefix(PREFIX).unwrap_or(&name);
        // A token table's product is the transpose of a lookup, and PEFT names its matrices so.
        if let Some(path) = path.strip_suffix(".lora_embedding_A") {
            parts.entry(path.to_owned()).or_default().b = Some(transposed(&file, &name, &array)?);
        } else if let Some(path) = path.strip_suffix(".lora_embedding_B") {
            parts.entry(path.to_owned()).or_default().a = Some(transposed(&file, &name, &array)?);
        } else if let Some(path) = path.strip_suffix(".lora_A.weight") {
            parts.entry(path.to_owned()).or_default().a = Some(array);
        } else if let Some(path) = path.strip_suffix(".lora_B.weight") {
            parts.entry(path.to_owned()).or_default().b = Some(array);
        } else if let Some(path) = path
            .strip_suffix(".lora_magnitude_vector.weight")
            .or(path.strip_suffix(".lora_magnitude_vector"))
        {
            parts.entry(path.to_owned()).or_default().magnitude = Some(array);
        } else {
            return Err(failed(&file, format_args!("`{name}` does not belong to an adapter")));
        }
    }
    if decoder.components().tied_head
        && let Some(path) = parts.keys().find(|it| it.ends_with("embed_tokens"))
    {
        let what = format!(
            "adapts `{path}` alone, which in this model is the head, too: PEFT leaves that as it is, \
             which is not supported"
        );
        return Err(failed(&file, what));
    }
    let scale = |path: &str, found: usize| {
        // The matrices say what the rank is; a pattern that says otherwise would be for another file.
        let rank = if ranks.is_empty() && rank as usize == found { rank } else { found as f64 };
        let divisor = if is_stabilized { rank.sqrt() } else { rank };
        (of(&alphas, path, alpha) / divisor) as f32
    };
    let targets = experts::targets(config).map_err(about)?;
    let mut of_experts = experts::take(decoder, &file, &targets, &mut parts, scale)?;
    of_experts.extend(assemble(&file, parts, scale)?);
    Ok(of_experts)
}

type Written = (&'static str, Vec<(String, Array)>, Value);

pub(super) fn write(
    decoder: &Decoder,
    adapters: &[(&str, &Adapter)],
    base: &str,
) -> Result<Written> {
    let mut tensors = Vec::new();
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    let rank_of = Adapter::rank;
    let alpha_of = |adapter: &Adapter| f64::from(adapter.scale()) * rank_of(adapter) as f64;
    let first = adapters[0].1;
    let dora = first.magnitude().is_some();
    for &(path, adapter) in adapters {
        if adapter.shape().len() != 2 {
            let what = format!(
                "PEFT cannot hold an adapter for the experts `{path}`, which transformers keeps in other \
                 tensors; mlx-lm's format can"
            );
            return Err(Error::new(ErrorKind::Adapter, what));
        }
        if adapter.magnitude().is_some() != dora {
            let what = "PEFT has magnitudes on all adapters of a model or on none";
            return Err(Error::new(ErrorKind::Adapter, what));
        }
        if rank_of(adapter) != rank_of(first) {
            ranks.insert(path.to_owned(), json!(rank_of(adapter)));
        }
        if alpha_of(adapter) != alpha_of(first) {
            alphas.insert(path.to_owned(), json!(alpha_of(adapter)));
        }
        let full = format!("{PREFIX}{path}");
        if path.ends_with("embed_tokens") {
            let tied = decoder.components().tied_head;
            if dora || tied {
                let why = if tied { "tied to the head" } else { "with magnitudes" };
                let what = format!("PEFT cannot hold an adapter for `{path}` {why}");
                return Err(Error::new(ErrorKind::Adapter, what));
            }
            tensors.push((format!("{full}.lora_embedding_A"), adapter.b().t().contiguous()?));
            tensors.push((format!("{full}.lora_embedding_B"), adapter.a().t().contiguous()?));
            continue;
        }
        tensors.push((format!("{full}.lora_A.weight"), adapter.a().clone()));
        tensors.push((format!("{full}.lora_B.weight"), adapter.b().clone()));
        if let Some(magnitude) = adapter.magnitude() {
            tensors.push((format!("{full}.lora_magnitude_vector"), magnitude.clone()));
        }
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": rank_of(first),
        "lora_alpha": alpha_of(first),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "use_rslora": false,
        "use_dora": dora,
        "target_modules": targets(decoder, adapters),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "modules_to_save": null,
    });
    Ok((WEIGHTS, tensors, config))
}

/// The last parts of the names where those say all, else the names.
fn targets(decoder: &Decoder, adapters: &[(&str, &Adapter)]) -> Vec<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let mut short: Vec<String> = adapters.iter().map(|(path, _)| last(path)).collect();
    short.sort();
    short.dedup();
    let meant = decoder.linears().iter().filter(|it| short.contains(&last(it.path()))).count();
    // A mixture's experts have names that end like a dense layer's, and PEFT would adapt them.
    let has_experts = {
        let mut found = false;
        decoder.visit_parameters(|it| found |= it.path.contains(".switch_mlp."));
        found
    };
    if meant == adapters.len() && !has_experts && adapters.iter().all(|it| layer_of(it.0).is_some())
    {
        return short;
    }
    adapters.iter().map(|(path, _)| (*path).to_owned()).collect()
}
