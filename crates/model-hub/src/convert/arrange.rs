//! The tensors of a folder as the result has them: under MLX's or transformers' names, experts stacked
//! or alone, a repeated head dropped.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    checkpoint::{Checkpoint, Element, Object, Stored},
    families::{self, Family},
    float::Float,
    settings::{Layout, Mode, Scheme},
    stream,
};
use crate::{Error, ErrorKind, Result};

/// A tensor that stands in one or several places, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) parts: Vec<Stored>,
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    /// What is added to each number, in the dtype it is stored in.
    pub(super) plus: f32,
}

impl Tensor {
    fn whole(stored: Stored) -> Self {
        Self {
            element: stored.element,
            shape: stored.shape.clone(),
            parts: vec![stored],
            plus: 0.0,
        }
    }

    pub(super) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn float(&self) -> Option<Float> {
        match self.element {
            Element::Float(it) => Some(it),
            _ => None,
        }
    }
}

/// A folder's tensors, arranged.
#[derive(Debug)]
pub(super) struct Arranged {
    /// By the names of a plain text model.
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// The schemes of packed modules, by their paths in a plain text model.
    pub(super) packed: BTreeMap<String, Scheme>,
    /// Whether the head is the token table.
    pub(super) is_tied: bool,
    /// Parts of a multimodal model that a text model does not have, with the number of their tensors.
    pub(super) left_out: BTreeMap<String, usize>,
}

impl Arranged {
    pub(super) fn new(
        checkpoint: &Checkpoint,
        family: &Family,
        quantization: Option<&Object>,
        layout: Layout,
    ) -> Result<Self> {
        let (stored, left_out) = families::plain_names(checkpoint, family)?;
        let mut tensors: BTreeMap<String, Tensor> =
            stored.into_iter().map(|(name, it)| (name, Tensor::whole(it))).collect();
        let is_tied = tie(checkpoint, &mut tensors)?;
        if family.is_recurrent {
            recur(checkpoint, family, layout, &mut tensors)?;
        }
        let mut packed = packed(checkpoint, family, quantization, &tensors)?;
        match layout {
            Layout::Mlx if family.stacks_experts => {
                split(checkpoint, &mut tensors)?;
                stack(checkpoint, &mut tensors)?;
            }
            Layout::HuggingFace if family.stacks_experts => unstack(&mut tensors, &mut packed),
            _ => {}
        }
        Ok(Self { tensors, packed, is_tied, left_out })
    }
}

/// Whether the head is the token table. A head that repeats the table is dropped where the config
/// calls it tied; one that differs from it contradicts the config.
fn tie(checkpoint: &Checkpoint, tensors: &mut BTreeMap<String, Tensor>) -> Result<bool> {
    let config = &checkpoint.config;
    let inner = config.get("text_config").and_then(|it| it.get("tie_word_embeddings"));
    let said = config.get("tie_word_embeddings").or(inner).and_then(Value::as_bool);
    let Some(head) = tensors.get("lm_head.weight") else {
        if said == Some(false) {
            let what = "is false, but the folder holds no lm_head.weight";
            return Err(checkpoint.config_error("tie_word_embeddings", what));
        }
        return Ok(true);
    };
    if said != Some(true) || head.element == Element::U32 {
        return Ok(false);
    }
    let table = &tensors["model.embed_tokens.weight"];
    if !stream::same(checkpoint, &head.parts[0], &table.parts[0])? {
        let what = "which differs from the token table, but config.json calls it tied; set \
                    `tie_word_embeddings` to false there, or remove the tensor";
        return Err(checkpoint.error(&head.parts[0], what));
    }
    tensors.remove("lm_head.weight");
    Ok(true)
}

/// The schemes of packed modules, by their plain paths.
fn packed(
    checkpoint: &Checkpoint,
    family: &Family,
    quantization: Option<&Object>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Scheme>> {
    let mut schemes = BTreeMap::new();
    for (name, scales) in tensors {
        let Some(path) = name.strip_suffix(".scales") else { continue };
        let error = |what: &str| Err(checkpoint.error(&scales.parts[0], what));
        let Some(quantization) = quantization else {
            return error("but config.json has no `quantization`");
        };
        let Some(words) = tensors.get(&format!("{path}.weight")) else {
            return error("but no packed weight with it");
        };
        let has_biases = tensors.contains_key(&format!("{path}.biases"));
        let leading = |it: &Tensor| it.shape[..it.shape.len().saturating_sub(1)].to_vec();
        let takes_hidden = ["embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "qkv_proj"]
            .iter()
            .chain(&["gate_proj", "up_proj", "gate_up_proj", "mlp.gate"])
            .any(|it| path.ends_with(it));
        let scheme = families::packed_scheme(
            quantization,
            &format!("{}{path}", family.prefix),
            checkpoint.size("hidden_size").filter(|_| takes_hidden),
            words.columns(),
            scales.columns(),
            has_biases,
        );
        let fits = |scheme: &Scheme| {
            let is_affine = scheme.mode() == Mode::Affine;
            words.element == Element::U32
                && leading(words) == leading(scales)
                && is_affine == has_biases
                && is_affine == scales.float().is_some()
        };
        match scheme.filter(fits) {
            Some(scheme) => _ = schemes.insert(path.to_owned(), scheme),
            None => {
                return error("whose shape fits no quantization that config.json names");
            }
        }
        if tensors.contains_key(&format!("{path}.global_scale")) {
            return error("with a global scale, which is not converted");
        }
    }
    Ok(schemes)
}

/// Gives convolutions and norms MLX's form, `[channels, width, 1]` and with the 1 added, unless the
/// convolutions say that the folder has it already.
fn recur(
    checkpoint: &Checkpoint,
    family: &Family,
    layout: Layout,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    let is_convolution = |name: &str| name.ends_with("conv1d.weight");
    let is_mlx = |(name, it): (&String, &Tensor)| is_convolution(name) && it.columns() == 1;
    if layout == Layout::HuggingFace {
        let what = "this family is converted to MLX's layout only";
        return Err(Error::new(ErrorKind::Settings, what));
    }
    if tensors.iter().any(is_mlx) {
        return Ok(());
    }
    for (name, tensor) in tensors {
        if is_convolution(name) {
            let [channels, 1, width] = tensor.shape[..] else {
                let what = "whose shape is not that of a convolution, [channels, 1, width]";
                return Err(checkpoint.error(&tensor.parts[0], what));
            };
            // The same numbers in the same order: the axis that moves has one place.
            tensor.shape = vec![channels, width, 1];
        } else if family.lacks_one(name) {
            tensor.plus = 1.0;
        }
    }
    Ok(())
}

/// Takes the two halves of `experts.gate_up_proj`, `[experts, 2 * inner, hidden]`, apart, and names
/// them and `experts.down_proj` as the stacked experts they are.
fn split(checkpoint: &Checkpoint, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
    const FUSED: &str = ".mlp.experts.gate_up_proj";
    let fused: Vec<String> = tensors.keys().filter(|it| it.ends_with(FUSED)).cloned().collect();
    for name in fused {
        let Some(both) = tensors.remove(&name) else { continue };
        let at = name.replacen(FUSED, ".mlp", 1);
        let [experts, rows, columns] = both.shape[..] else {
            return Err(checkpoint.error(&both.parts[0], "which has not three axes"));
        };
        let whole = &both.parts[0];
        for (half, name) in ["gate_proj", "up_proj"].into_iter().enumerate() {
            let shape = vec![rows / 2, columns];
            let part = |expert: usize| {
                let mut part = Stored { shape: shape.clone(), ..whole.clone() };
                part.at += part.bytes() * (2 * expert + half) as u64;
                part
            };
            let parts = (0..experts).map(part).collect();
            let shape = vec![experts, rows / 2, columns];
            let half = Tensor { parts, element: both.element, shape, plus: 0.0 };
            tensors.insert(format!("{at}.switch_mlp.{name}.weight"), half);
        }
        if let Some(down) = tensors.remove(&format!("{at}.experts.down_proj")) {
            tensors.insert(format!("{at}.switch_mlp.down_proj.weight"), down);
        }
    }
    Ok(())
}

/// Stacks `experts.{index}.{name}` of each layer as `switch_mlp.{name}`.
fn stack(checkpoint: &Checkpoint, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
    let mut stacks: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
    let is_expert = |name: &str| {
        let (at, rest) = name.split_once(".mlp.experts.")?;
        let (index, rest) = rest.split_once('.')?;
        Some((format!("{at}.mlp.switch_mlp.{rest}"), index.parse::<usize>().ok()?))
    };
    tensors.retain(|name, tensor| match is_expert(name) {
        None => true,
        Some((stacked, index)) => {
            stacks.entry(stacked).or_default().insert(index, tensor.clone());
            false
        }
    });
    let said = checkpoint.size("num_experts").or_else(|| checkpoint.size("num_local_experts"));
    for (name, experts) in stacks {
        let count = said.unwrap_or(experts.len());
        let missing = (0..count).find(|it| !experts.contains_key(it));
        if let Some(missing) = missing {
            let what = format!("{} lacks expert {missing} of {name}", checkpoint.folder.display());
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        let mut parts = Vec::new();
        let mut first: Option<Tensor> = None;
        for (index, expert) in experts {
            let like = first.get_or_insert_with(|| expert.clone());
            let is_like = like.shape == expert.shape && like.element == expert.element;
            if !is_like || index >= count {
                let what = format!("which does not fit the other {count} experts");
                return Err(checkpoint.error(&expert.parts[0], what));
            }
            if expert.float().is_none() {
                let what = "which is packed expert by expert; expected them stacked as switch_mlp";
                return Err(checkpoint.error(&expert.parts[0], what));
            }
            parts.extend(expert.parts);
        }
        if let Some(Tensor { element, shape, .. }) = first {
            let shape = [vec![parts.len()], shape].concat();
            tensors.insert(name, Tensor { parts, element, shape, plus: 0.0 });
        }
    }
    Ok(())
}

/// Takes each layer's experts apart again.
fn unstack(tensors: &mut BTreeMap<String, Tensor>, packed: &mut BTreeMap<String, Scheme>) {
    const STACKED: &str = ".mlp.switch_mlp.";
    let alone =
        |name: &str, index: usize| name.replacen(STACKED, &format!(".mlp.experts.{index}."), 1);
    let stacked: Vec<String> = tensors.keys().filter(|it| it.contains(STACKED)).cloned().collect();
    for name in stacked {
        let Some(tensor) = tensors.remove(&name) else { continue };
        let Some((&count, shape)) = tensor.shape.split_first() else { continue };
        let scheme = name.strip_suffix(".weight").and_then(|it| packed.remove(it));
        for index in 0..count {
            let whole = &tensor.parts[0];
            let mut stored = Stored { shape: shape.to_vec(), ..whole.clone() };
            stored.at += stored.bytes() * index as u64;
            let name = alone(&name, index);
            if let (Some(path), Some(scheme)) = (name.strip_suffix(".weight"), scheme) {
                packed.insert(path.to_owned(), scheme);
            }
            tensors.insert(name, Tensor::whole(stored));
        }
    }
}
