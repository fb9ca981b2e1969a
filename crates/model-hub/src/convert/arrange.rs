//! The tensors of a folder as the result has them: under MLX's or transformers' names, in the layout of
//! either, a repeated head dropped.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    checkpoint::{Checkpoint, Element, Object, Stored},
    complete,
    derived::Change,
    families::{self, Family},
    float::Float,
    settings::{Layout, Mode, Scheme},
    stream,
};
use crate::Result;

/// A tensor that stands in one or several places, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) parts: Vec<Stored>,
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
}

impl Tensor {
    pub(super) fn whole(stored: Stored) -> Self {
        Self { element: stored.element, shape: stored.shape.clone(), parts: vec![stored] }
    }

    /// The numbers changed.
    pub(super) fn change(&mut self, change: &Change) {
        for part in &mut self.parts {
            *part = part.changed(change.clone());
        }
    }

    pub(super) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn float(&self) -> Option<Float> {
        self.element.float()
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
        if layout == Layout::Mlx {
            for step in family.steps {
                step.forward(checkpoint, &mut tensors)?;
            }
        }
        let mut packed = packed(checkpoint, family, quantization, &tensors)?;
        complete::check(checkpoint, &tensors, &packed)?;
        if layout == Layout::HuggingFace {
            for step in family.steps.iter().rev() {
                step.back(checkpoint, &mut tensors, &mut packed)?;
            }
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
        let biases = tensors.get(&format!("{path}.biases"));
        let has_biases = biases.is_some();
        let leading = |it: &Tensor| it.shape[..it.shape.len().saturating_sub(1)].to_vec();
        let takes_hidden = ["embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "qkv_proj"]
            .iter()
            .chain(&["gate_proj", "up_proj", "gate_up_proj", "mlp.gate"])
            .any(|it| path.ends_with(it));
        let in_file = scales.parts[0].name.strip_suffix(".scales");
        let adopted = in_file.and_then(|it| checkpoint.adopted.get(it)).copied();
        let said = || {
            families::packed_scheme(
                quantization,
                &family.naming.path(path),
                checkpoint.size("hidden_size").filter(|_| takes_hidden),
                words.columns(),
                scales.columns(),
                has_biases,
            )
        };
        let scheme = adopted.or_else(said);
        let fits = |scheme: &Scheme| {
            let is_affine = scheme.mode() == Mode::Affine;
            // Words, scales and biases are read part by part.
            let are_alike = |it: &Tensor| it.parts.len() == words.parts.len();
            words.element == Element::U32
                && leading(words) == leading(scales)
                && are_alike(scales)
                && biases.is_none_or(are_alike)
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
