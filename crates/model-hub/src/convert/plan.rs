//! From a folder's tensors and the settings to the tensors of the result, before a byte is read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    arrange::{Arranged, Tensor},
    checkpoint::{Checkpoint, Element, Object},
    families::{self, Family, Naming},
    float::Float,
    settings::{Conversion, Layout, Mode, Numbers, Recipe, Rule, Scheme},
};
use crate::{Error, ErrorKind, Result};

/// A tensor of the result.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
}

impl Output {
    pub(super) fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.element.size()) as u64
    }
}

/// How one or several tensors of the result come about.
#[derive(Debug)]
pub(super) enum Work {
    /// As it is, or as floats of another width.
    Copy { tensor: Tensor },
    /// As `dtype` numbers, packed into words, scales and, in the affine mode, biases.
    Quantize { tensor: Tensor, dtype: Float, scheme: Scheme },
    /// Unpacked, affine weights with scales and biases as `dtype` numbers.
    Dequantize {
        words: Tensor,
        scales: Tensor,
        biases: Option<Tensor>,
        dtype: Float,
        scheme: Scheme,
    },
}

/// Work and what comes of it, which is written side by side.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) outputs: Vec<Output>,
}

/// Everything that is to be written.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    /// What `config.json` is to call the architecture, where it is another name than before.
    pub(super) model_type: Option<&'static str>,
    /// What `config.json` is to say of the quantization.
    pub(super) quantization: Option<Object>,
    /// Whether the head is the token table, which `config.json` is to say where it does not yet.
    pub(super) is_tied: bool,
    /// Numbers that the weights stand for.
    pub(super) parameters: u64,
    /// Modules left out because the result is a text model's, with the number of their tensors.
    pub(super) left_out: BTreeMap<String, usize>,
    /// How many modules are quantized.
    pub(super) quantized: usize,
}

impl Plan {
    pub(super) fn new(checkpoint: &Checkpoint, conversion: &Conversion) -> Result<Self> {
        let family = Family::of(checkpoint)?;
        let mut quantization = quantization(checkpoint, &family)?;
        check(checkpoint, &family, conversion, quantization.as_ref())?;
        let Arranged { tensors, packed, is_tied, left_out } =
            Arranged::new(checkpoint, &family, quantization.as_ref(), conversion.layout)?;
        let naming = naming(checkpoint, &family, conversion.layout);
        if let (Some(all), false) = (&mut quantization, checkpoint.adopted.is_empty()) {
            name_others(all, &packed, naming);
        }
        let mut planner = Planner {
            family,
            naming,
            dtype: dtype(checkpoint, conversion),
            layers: layers(&tensors),
            packed,
            plan: Self {
                jobs: Vec::new(),
                model_type: model_type(checkpoint, &family, conversion.layout),
                quantization,
                is_tied,
                parameters: 0,
                left_out,
                quantized: 0,
            },
        };
        match &conversion.numbers {
            Numbers::Kept => planner.keep(tensors),
            Numbers::Dequantized => planner.dequantize(&tensors),
            Numbers::Quantized { scheme, recipe, rules } => {
                planner.quantize(checkpoint, tensors, *scheme, *recipe, rules)?;
            }
        }
        Ok(planner.plan)
    }

    /// All tensors of the result.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &Output> {
        self.jobs.iter().flat_map(|it| &it.outputs)
    }
}

/// MLX's own quantization in the config, or what that of gpt-oss's publisher is in MLX's terms;
/// others are refused by name.
fn quantization(checkpoint: &Checkpoint, family: &Family) -> Result<Option<Object>> {
    for key in ["quantization", "quantization_config"] {
        let Some(value) = checkpoint.config.get(key) else { continue };
        let Some(object) = value.as_object() else {
            return Err(checkpoint.config_error(key, "is not an object"));
        };
        match object.get("quant_method") {
            None => {
                let unusable = |e| checkpoint.config_error(key, format!("cannot be used: {e}"));
                families::scheme(object).map_err(unusable)?;
                return Ok(Some(object.clone()));
            }
            Some(method) if family.has_packed_experts && method == "mxfp4" => {
                return Ok(Some(entry(Scheme::new(Mode::Mxfp4, None, None)?, true)));
            }
            Some(method) => {
                let what = format!("names the method {method}, which this family does not have");
                return Err(checkpoint.config_error(key, what));
            }
        }
    }
    Ok(None)
}

/// Lists the modules that differ from what is said of all.
fn name_others(all: &mut Object, packed: &BTreeMap<String, Scheme>, naming: Naming) {
    let size = |key: &str| all.get(key).and_then(Value::as_u64).map(|it| it as usize);
    let usual = (size("bits"), size("group_size"));
    for (path, scheme) in packed {
        if (Some(scheme.bits()), Some(scheme.group_size())) != usual {
            all.insert(naming.path(path), Value::Object(entry(*scheme, true)));
        }
    }
}

/// Refuses what the folder and the settings do not allow together.
fn check(
    checkpoint: &Checkpoint,
    family: &Family,
    conversion: &Conversion,
    quantization: Option<&Object>,
) -> Result<()> {
    let folder = checkpoint.folder.display();
    let what = match (&conversion.numbers, quantization, conversion.layout) {
        (Numbers::Quantized { .. }, Some(_), Layout::Mlx) if family.has_packed_experts => {
            return Ok(());
        }
        (Numbers::Quantized { .. }, Some(_), _) => already_quantized(checkpoint),
        (Numbers::Dequantized, None, _) => {
            format!("{folder} is not quantized, so there is nothing to dequantize")
        }
        (Numbers::Quantized { .. }, None, Layout::HuggingFace)
        | (Numbers::Kept, Some(_), Layout::HuggingFace) => {
            "transformers does not read what MLX quantized; dequantize it for that layout"
                .to_owned()
        }
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Settings, what))
}

fn already_quantized(checkpoint: &Checkpoint) -> String {
    format!("{} is quantized already; dequantize it first", checkpoint.folder.display())
}

/// How the result's names begin.
fn naming(checkpoint: &Checkpoint, family: &Family, layout: Layout) -> Naming {
    match layout {
        Layout::Mlx => family.naming,
        Layout::HuggingFace => {
            Naming::of_transformers(family, checkpoint.config.contains_key("text_config"))
        }
    }
}

/// Another name for the architecture: mlx-lm knows the text model of some families by the multimodal
/// one's name alone, with the text model's fields in its config.
fn model_type(checkpoint: &Checkpoint, family: &Family, layout: Layout) -> Option<&'static str> {
    let is_multimodal = checkpoint.config.contains_key("text_config");
    match layout {
        Layout::Mlx => family.written_as,
        Layout::HuggingFace if is_multimodal => None,
        Layout::HuggingFace => family.text_model(),
    }
}

/// What floats become, by the settings or, as in mlx-lm, by the config.
fn dtype(checkpoint: &Checkpoint, conversion: &Conversion) -> Option<Float> {
    let config = &checkpoint.config;
    let named = || {
        let text = |object: &Object, key: &str| object.get(key)?.as_str().map(str::to_owned);
        let outer = text(config, "torch_dtype");
        outer.or_else(|| text(config.get("text_config")?.as_object()?, "dtype"))
    };
    conversion.dtype.or_else(|| named()?.parse().ok())
}

/// How many layers there are.
fn layers(tensors: &BTreeMap<String, Tensor>) -> usize {
    tensors.keys().filter_map(|it| families::layer(it)).max().map_or(0, |it| it + 1)
}

/// A plan being made.
#[derive(Debug)]
struct Planner {
    family: Family,
    naming: Naming,
    dtype: Option<Float>,
    layers: usize,
    packed: BTreeMap<String, Scheme>,
    plan: Plan,
}

impl Planner {
    /// The path in the result.
    fn path(&self, plain: &str) -> String {
        self.naming.path(plain)
    }

    fn keep(&mut self, tensors: BTreeMap<String, Tensor>) {
        for (name, tensor) in in_order(tensors) {
            self.copy(&name, tensor);
        }
        self.plan.quantized = self.packed.len();
    }

    /// Plans a tensor that stays what it is, but for the width of its floats.
    fn copy(&mut self, name: &str, tensor: Tensor) {
        let element = match (tensor.element, self.dtype) {
            (Element::Float(_), Some(dtype)) if self.family.is_cast(name) => Element::Float(dtype),
            (element, _) => element,
        };
        // Scales and biases of packed weights do not count as parameters, as mlx-lm counts.
        let module = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
        let packed = |path: &str| self.packed.get(path);
        self.plan.parameters += match (module.and_then(packed), name.strip_suffix(".weight")) {
            (Some(_), _) => 0,
            (None, Some(path)) => {
                packed(path).map_or(tensor.count(), |it| tensor.count() * 32 / it.bits()) as u64
            }
            (None, None) => tensor.count() as u64,
        };
        let outputs = vec![Output { name: self.path(name), element, shape: tensor.shape.clone() }];
        self.plan.jobs.push(Job { work: Work::Copy { tensor }, outputs });
    }

    fn dequantize(&mut self, tensors: &BTreeMap<String, Tensor>) {
        for (name, tensor) in in_order(tensors.clone()) {
            if self.is_of_packed(&name) {
                continue;
            }
            let path = name.strip_suffix(".weight").unwrap_or_default();
            let beside = |what: &str| tensors.get(&format!("{path}.{what}")).cloned();
            let scheme = self.packed.get(path).copied();
            let (Some(scheme), Some(scales)) = (scheme, beside("scales")) else {
                self.copy(&name, tensor);
                continue;
            };
            let dtype = self.dtype.or(scales.float()).unwrap_or(Float::Bfloat16);
            let columns = scales.columns() * scheme.group_size();
            let mut shape = tensor.shape.clone();
            shape.pop();
            shape.push(columns);
            self.plan.parameters += shape.iter().product::<usize>() as u64;
            let outputs =
                vec![Output { name: self.path(&name), element: Element::Float(dtype), shape }];
            let biases = beside("biases");
            let work = Work::Dequantize { words: tensor, scales, biases, dtype, scheme };
            self.plan.jobs.push(Job { work, outputs });
        }
        self.plan.quantization = None;
    }

    /// Whether a tensor is the scales or biases of a packed weight, which come with that.
    fn is_of_packed(&self, name: &str) -> bool {
        let module = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
        module.is_some_and(|it| self.packed.contains_key(it))
    }

    fn quantize(
        &mut self,
        checkpoint: &Checkpoint,
        tensors: BTreeMap<String, Tensor>,
        scheme: Scheme,
        recipe: Option<Recipe>,
        rules: &[Rule],
    ) -> Result<()> {
        // Where the experts are packed already, the config's first entries are theirs.
        let before = self.plan.quantization.take();
        let names_all = before.is_some();
        let mut entries = before.unwrap_or_else(|| entry(scheme, true));
        let mut used = vec![false; rules.len()];
        let mut has_down = false;
        for (name, tensor) in in_order(tensors) {
            let path = name.strip_suffix(".weight").map(|it| self.path(it)).unwrap_or_default();
            let may_be = is_product(&name, &tensor) && self.family.is_quantized(&path);
            let (Some(stored), true) = (tensor.float(), may_be) else {
                self.copy(&name, tensor);
                continue;
            };
            has_down |= path.contains("down_proj");
            for (used, rule) in used.iter_mut().zip(rules) {
                *used |= rule.matches(&path);
            }
            let rule = rules.iter().rev().find(|it| it.matches(&path));
            let (scheme, written) = match rule {
                Some(rule) => {
                    check_rule(rule, &tensor)?;
                    (rule.scheme(), true)
                }
                None => self.scheme(&path, tensor.columns(), scheme, recipe)?,
            };
            let Some(own) = scheme else {
                self.copy(&name, tensor);
                continue;
            };
            if written || names_all {
                let with_mode = rule.is_some() || recipe.is_some() || !written;
                entries.insert(path.clone(), Value::Object(entry(own, with_mode)));
            }
            self.pack(&path, tensor, self.dtype.unwrap_or(stored), own);
        }
        if let Some((_, rule)) = used.iter().zip(rules).find(|(used, _)| !**used) {
            let mut what = format!("the rule {rule} matches no module of the model");
            if self.plan.is_tied && rule.matches(&self.path("lm_head")) {
                let table = self.path("model.embed_tokens");
                what += &format!("; its head is the token table, {table}");
            }
            return Err(Error::new(ErrorKind::Settings, what));
        }
        if recipe.is_some() && !has_down {
            let what = "the model has no down_proj, which recipes need to find its layers";
            return Err(Error::new(ErrorKind::Settings, what));
        }
        if names_all && self.plan.quantized == 0 {
            return Err(Error::new(ErrorKind::Settings, already_quantized(checkpoint)));
        }
        self.plan.quantization = Some(entries);
        Ok(())
    }

    /// What a module becomes that no rule speaks of, and whether `config.json` lists it.
    fn scheme(
        &self,
        path: &str,
        columns: usize,
        all: Scheme,
        recipe: Option<Recipe>,
    ) -> Result<(Option<Scheme>, bool)> {
        let fits = |scheme: Scheme| columns.is_multiple_of(scheme.group_size()).then_some(scheme);
        if fits(all).is_none() {
            return Ok((None, false));
        }
        if let Some(recipe) = recipe {
            let bits = families::recipe_bits(recipe, path, self.layers);
            return Ok((Some(Scheme::new(all.mode(), Some(bits), Some(all.group_size()))?), true));
        }
        if self.family.keeps_eight_bits(path) {
            return Ok((fits(Scheme::EIGHT_BITS), true));
        }
        Ok((Some(all), false))
    }

    /// Plans a packed weight.
    fn pack(&mut self, path: &str, tensor: Tensor, dtype: Float, scheme: Scheme) {
        let columns = tensor.columns();
        let leading = &tensor.shape[..tensor.shape.len() - 1];
        let output = |what: &str, element, last: usize| Output {
            name: format!("{path}.{what}"),
            element,
            shape: [leading, &[last]].concat(),
        };
        let groups = columns / scheme.group_size();
        let mut outputs = vec![output("weight", Element::U32, columns * scheme.bits() / 32)];
        if scheme.mode() == Mode::Affine {
            outputs.push(output("scales", Element::Float(dtype), groups));
            outputs.push(output("biases", Element::Float(dtype), groups));
        } else {
            outputs.push(output("scales", Element::U8, groups));
        }
        self.plan.parameters += tensor.count() as u64;
        self.plan.quantized += 1;
        self.plan.jobs.push(Job { work: Work::Quantize { tensor, dtype, scheme }, outputs });
    }
}

/// Refuses a rule whose groups do not divide the module's columns.
fn check_rule(rule: &Rule, tensor: &Tensor) -> Result<()> {
    let Some(scheme) = rule.scheme() else { return Ok(()) };
    let columns = tensor.columns();
    if columns.is_multiple_of(scheme.group_size()) {
        return Ok(());
    }
    let what = format!(
        "the rule {rule} gives {:?} groups of {}, which do not divide its {columns} columns",
        tensor.parts[0].name,
        scheme.group_size()
    );
    Err(Error::new(ErrorKind::Settings, what))
}

/// Whether a tensor is the weight of a product or a token table: of two axes, or three for the experts
/// of a layer or the heads of latent attention together.
fn is_product(name: &str, tensor: &Tensor) -> bool {
    const TOGETHER: [&str; 4] = [".switch_mlp.", ".switch_glu.", ".embed_q.", ".unembed_out."];
    let is_packed = [".mlp.experts.", ".feed_forward.experts."].iter().any(|it| name.contains(it));
    let axes = if is_packed || TOGETHER.iter().any(|it| name.contains(it)) { 3 } else { 2 };
    name.ends_with(".weight") && tensor.shape.len() == axes
}

/// An entry of `quantization` in the config.
fn entry(scheme: Scheme, with_mode: bool) -> Object {
    let mut entry = Object::new();
    entry.insert("group_size".to_owned(), json!(scheme.group_size()));
    entry.insert("bits".to_owned(), json!(scheme.bits()));
    if with_mode {
        entry.insert("mode".to_owned(), json!(scheme.mode().as_str()));
    }
    entry
}

/// By names, layer 2 before layer 10.
fn in_order(tensors: BTreeMap<String, Tensor>) -> impl Iterator<Item = (String, Tensor)> {
    let mut all: Vec<(String, Tensor)> = tensors.into_iter().collect();
    all.sort_by_cached_key(|(name, _)| {
        let part = |it: &str| (it.parse::<usize>().unwrap_or(0), it.to_owned());
        name.split('.').map(part).collect::<Vec<_>>()
    });
    all.into_iter()
}
