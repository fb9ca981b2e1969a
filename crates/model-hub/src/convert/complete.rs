//! Whether a folder's tensors are what its config says, as far as that can be told without the graph.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    arrange::Tensor,
    checkpoint::{Checkpoint, Element, damaged},
    families,
    settings::Scheme,
};
use crate::Result;

/// Refuses words without scales, layers that are missing or too many, and a token table of another size.
pub(super) fn check(
    checkpoint: &Checkpoint,
    tensors: &BTreeMap<String, Tensor>,
    packed: &BTreeMap<String, Scheme>,
) -> Result<()> {
    for (name, tensor) in tensors {
        let path = name.rsplit_once('.').map_or(&**name, |it| it.0);
        if matches!(tensor.element, Element::U32 | Element::U8) && !packed.contains_key(path) {
            let what = format!(
                "which is packed, but no {path}.scales beside it; download the folder again"
            );
            return Err(checkpoint.error(&tensor.parts[0], what));
        }
    }
    let layers: BTreeSet<usize> = tensors.keys().filter_map(|it| families::layer(it)).collect();
    let field = "num_hidden_layers";
    if let Some(said) = size(checkpoint, field)? {
        if let Some(missing) = (0..said).find(|it| !layers.contains(it)) {
            let what = format!(
                "lacks layer {missing}, of the {said} that config.json names (`{field}`); download it \
                 again"
            );
            return Err(damaged(&checkpoint.folder, what));
        }
        if layers.len() > said {
            let what = format!("is {said}, but the folder holds {} layers", layers.len());
            return Err(checkpoint.config_error(field, what));
        }
    }
    let Some(table) = tensors.get("model.embed_tokens.weight") else { return Ok(()) };
    for (axis, field) in ["vocab_size", "hidden_size"].into_iter().enumerate() {
        let said = size(checkpoint, field)?;
        // A packed table has its columns in words.
        let is_words = table.element == Element::U32 && axis == 1;
        if let (Some(said), Some(&found)) = (said, table.shape.get(axis))
            && said != found
            && !is_words
        {
            let what =
                format!("of shape {:?}, but config.json has {said} as `{field}`", table.shape);
            return Err(checkpoint.error(&table.parts[0], what));
        }
    }
    Ok(())
}

/// A size of the language model, which is a whole number where it is there.
fn size(checkpoint: &Checkpoint, field: &str) -> Result<Option<usize>> {
    let inner = checkpoint.config.get("text_config").and_then(Value::as_object);
    match inner.unwrap_or(&checkpoint.config).get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match checkpoint.size(field) {
            Some(size) => Ok(Some(size)),
            None => Err(checkpoint.config_error(field, format!("is {value}, not a whole number"))),
        },
    }
}
