//! PEFT's adapters of a mixture's experts, which transformers keeps in two parameters, not in modules:
//! `target_parameters`.
//!
//! A parameter of a module has its matrices at the module's own path, and where both are adapted, those of
//! the first one at `base_layer` within: `experts.base_layer.lora_A.weight` for `gate_up_proj`, and
//! `experts.lora_A.weight` for `down_proj`. All experts' matrices are one: A is `[experts · rank, in]`,
//! expert by expert, and B `[out, rank · experts]`, rank by rank.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use mlx_rs::Array;
use mlxgk_mlx_models::{Adapter, Decoder};
use serde_json::Value;

use super::{Parts, lora::layer_of};
use crate::{Error, ErrorKind, Result, files::failed};

/// In the order in which transformers' modules have them.
const PARAMETERS: [&str; 2] = ["gate_up_proj", "down_proj"];
/// How the name of the module that has them ends.
const MODULE: &str = ".experts";
/// What is inside of one adapted parameter's wrapper.
const WITHIN: &str = ".base_layer";

/// The entries of `target_parameters`, or what is wrong with them.
pub(super) fn targets(config: &Value) -> Result<Vec<String>, String> {
    let field = "target_parameters";
    let entries = match &config[field] {
        Value::Null => return Ok(Vec::new()),
        Value::Array(entries) => entries,
        other => return Err(format!("{field} is {other}, expected a list of names")),
    };
    let name = |entry: &Value| {
        let text = entry.as_str().unwrap_or_default();
        let last = text.rsplit('.').next().unwrap_or_default();
        PARAMETERS.contains(&last).then(|| text.to_owned()).ok_or_else(|| {
            let known = PARAMETERS.join(" and ");
            format!("{field} has {entry}, which is not supported; of experts {known} are")
        })
    };
    entries.iter().map(name).collect()
}

/// Takes the matrices that are for such parameters out of `parts`: adapters of the model's experts, by
/// their paths. `scale` is told PEFT's path and the rank.
pub(super) fn take(
    decoder: &Decoder,
    file: &Path,
    targets: &[String],
    parts: &mut BTreeMap<String, Parts>,
    scale: impl Fn(&str, usize) -> f32,
) -> Result<Vec<(String, Adapter)>> {
    let modules: BTreeSet<String> =
        parts.keys().map(|it| it.replace(WITHIN, "")).filter(|it| it.ends_with(MODULE)).collect();
    let means = |target: &str, full: &str| {
        full == target || full.strip_suffix(target).is_some_and(|it| it.ends_with('.'))
    };
    let mut adapters = Vec::new();
    let mut unused: BTreeSet<&String> = targets.iter().collect();
    for module in modules {
        let full = |parameter: &str| format!("{module}.{parameter}");
        let is_target = |it: &&str| targets.iter().any(|target| means(target, &full(it)));
        let adapted: Vec<&str> = PARAMETERS.into_iter().filter(is_target).collect();
        unused.retain(|target| !adapted.iter().any(|it| means(target, &full(it))));
        for (index, parameter) in adapted.iter().enumerate() {
            let path = format!("{module}{}", WITHIN.repeat(adapted.len() - 1 - index));
            let found = parts.remove(&path).and_then(|it| it.a.zip(it.b));
            let Some((a, b)) = found else {
                let what = format!("holds no two matrices for `{}` at `{path}`", full(parameter));
                return Err(failed(file, what));
            };
            let products = products(decoder, file, &module, parameter)?;
            adapters.extend(of_parameter(file, &full(parameter), (a, b), products, &scale)?);
        }
    }
    match unused.first() {
        None => Ok(adapters),
        Some(target) => {
            let what = format!("holds no matrices for `{target}`, which target_parameters names");
            Err(failed(file, what))
        }
    }
}

/// The model's products that the parameter of all experts is, with their shapes.
fn products(
    decoder: &Decoder,
    file: &Path,
    module: &str,
    parameter: &str,
) -> Result<Vec<(String, Vec<usize>)>> {
    let wanted: &[&[&str]] = match parameter {
        "down_proj" => &[&["down_proj", "w2"]],
        _ => &[&["gate_proj", "w1"], &["up_proj", "w3"]],
    };
    let layer = layer_of(module);
    let all = decoder.products();
    let of_layer = all.iter().filter(|it| it.shape().len() == 3 && layer_of(it.path()) == layer);
    let experts: Vec<(String, Vec<usize>)> =
        of_layer.map(|it| (it.path().to_owned(), it.shape())).collect();
    let find = |names: &&[&str]| {
        let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        experts.iter().find(|(path, _)| names.contains(&&*last(path))).cloned()
    };
    let found: Option<Vec<_>> = wanted.iter().map(find).collect();
    found.ok_or_else(|| {
        let what = format!(
            "adapts `{module}.{parameter}`, but the model keeps no experts there that can be adapted; where \
             it has them fused, `mlxgk convert` takes them apart"
        );
        failed(file, what)
    })
}

/// The adapters of the products whose outputs, one after the other, are the parameter's.
fn of_parameter(
    file: &Path,
    parameter: &str,
    (a, b): (Array, Array),
    products: Vec<(String, Vec<usize>)>,
    scale: impl Fn(&str, usize) -> f32,
) -> Result<Vec<(String, Adapter)>> {
    let outputs: usize = products.iter().map(|it| it.1[1]).sum();
    let (experts, inputs) = (products[0].1[0], products[0].1[2]);
    let (rows, columns) = match (a.shape(), b.shape()) {
        (&[ranks, columns], &[rows, same])
            if ranks == same && ranks > 0 && (ranks as usize).is_multiple_of(experts) =>
        {
            (rows as usize, columns as usize)
        }
        (a, b) => {
            let what = format!(
                "`{parameter}` is adapted by {a:?} and {b:?}, which are not the matrices of {experts} experts"
            );
            return Err(failed(file, what));
        }
    };
    if (rows, columns) != (outputs, inputs) {
        let what = format!(
            "{} is for another model: `{parameter}` is {outputs} × {inputs} for each expert, and the adapter \
             for {rows} × {columns}",
            file.display()
        );
        return Err(Error::new(ErrorKind::Adapter, what));
    }
    let rank = a.dim(0) / experts as i32;
    let a = a.reshape(&[experts as i32, rank, inputs as i32])?;
    let b = b.reshape(&[outputs as i32, rank, experts as i32])?.transpose_axes(&[2, 0, 1])?;
    let count = products.len() as i32;
    let scale = scale(parameter, rank as usize);
    let halves = b.split_equal(count, 1)?.into_iter().zip(products);
    halves
        .map(|(b, (path, _))| {
            let adapter = Adapter::new(a.clone(), b.contiguous()?, scale);
            Ok((path.clone(), adapter.map_err(|e| failed(file, format_args!("`{path}`: {e}")))?))
        })
        .collect()
}
