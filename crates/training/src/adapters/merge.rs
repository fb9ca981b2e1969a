//! Adapters made part of the weights, in memory and on disk.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use mlx_rs::{Array, ops::quantize, transforms::eval};
use mlxgk_mlx_models::{Adapter, ComputeDtype, Decoder, ParameterKind};

use super::{add_adapter, clear_adapters};
use crate::{Error, ErrorKind, Result, files::failed, folder::write_folder, trainee::put};

/// What a merge took away, so that it can be given back to the bit.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_training::{LoraConfig, attach_lora, clear_adapters, merge_adapters};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let adapted = attach_lora(&mut model, &LoraConfig::default())?.len();
/// let merged = merge_adapters(&mut model)?;
/// assert_eq!(clear_adapters(&mut model), 0); // they are in the weights now
/// merged.undo(&mut model)?;
/// assert_eq!(clear_adapters(&mut model), adapted);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Merged {
    weights: Vec<(String, Array)>,
    adapters: Vec<(String, Adapter)>,
}

/// Puts every adapter's matrix into the weights it is for, and takes the adapter off. A packed matrix is
/// packed again, in the same groups and bits, which rounds it.
///
/// # Errors
/// When no adapter is set, a matrix is packed in another mode than MLX's affine one, or MLX fails; the
/// model is then as it was.
pub fn merge_adapters(decoder: &mut Decoder) -> Result<Merged> {
    let mut merged: Vec<(String, Array)> = Vec::new();
    let mut adapters = Vec::new();
    for product in decoder.products() {
        if let Some(adapter) = product.adapter() {
            let matrix = product.merged()?;
            matrix.eval()?;
            merged.push((product.path().to_owned(), matrix));
            adapters.push((product.path().to_owned(), adapter.clone()));
        }
    }
    if adapters.is_empty() {
        return Err(Error::new(ErrorKind::Adapter, "the model has no adapter to be merged"));
    }
    let mut held = HashMap::new();
    decoder.visit_parameters(|it| {
        if it.kind != ParameterKind::Adapter {
            held.insert(it.path.to_owned(), it.array.clone());
        }
    });
    let mut weights = Vec::new();
    for (path, matrix) in merged {
        let name = |ending: &str| format!("{path}.{ending}");
        match (held.get(&name("scales")), held.get(&name("weight"))) {
            (Some(scales), Some(_)) if !scales.dtype().is_float() => {
                let what = format!("`{path}` is packed in a mode that nothing can be merged into");
                return Err(Error::new(ErrorKind::Adapter, what));
            }
            (Some(scales), Some(words)) => {
                let group_size = matrix.dim(-1) / scales.dim(-1);
                let bits = words.dim(-1) * 32 / matrix.dim(-1);
                let matrix = matrix.as_dtype(scales.dtype())?;
                let (words, scales, biases) = quantize(&matrix, group_size, bits)?;
                for (ending, array) in [("weight", words), ("scales", scales), ("biases", biases)] {
                    weights.push((name(ending), array));
                }
            }
            _ => weights.push((name("weight"), matrix.as_dtype(decoder.dtype())?)),
        }
    }
    eval(weights.iter().map(|it| &it.1))?;
    let before =
        weights.iter().filter_map(|(name, _)| Some((name.clone(), held.get(name)?.clone())));
    let before: Vec<(String, Array)> = before.collect();
    clear_adapters(decoder);
    put(decoder, &weights.iter().map(|(name, array)| (name.as_str(), array)).collect())?;
    Ok(Merged { weights: before, adapters })
}

impl Merged {
    /// Gives weights and adapters back.
    ///
    /// # Errors
    /// When the model is another.
    pub fn undo(self, decoder: &mut Decoder) -> Result<()> {
        put(decoder, &self.weights.iter().map(|(name, array)| (name.as_str(), array)).collect())?;
        for (path, adapter) in self.adapters {
            let product = decoder.product_mut(&path).ok_or_else(|| {
                Error::new(ErrorKind::Adapter, format!("the model has no `{path}` to be restored"))
            })?;
            product.set_adapter(adapter)?;
        }
        Ok(())
    }
}

/// Writes the model in `base` to `out` with the adapters in it, each added to those before: every matrix
/// that is adapted in the dtype it had, everything else as it was. Returns how many matrices were.
///
/// # Errors
/// When a file cannot be read or written, `out` exists, an adapter is for another model, or a matrix that
/// it adapts is packed or stored in parts.
pub fn merge_folder(base: &Path, adapters: &[impl AsRef<Path>], out: &Path) -> Result<usize> {
    if out.exists() {
        return Err(failed(out, "is there already"));
    }
    let mut decoder = Decoder::load(base, ComputeDtype::Float32)?;
    for adapter in adapters {
        add_adapter(&mut decoder, adapter)?;
    }
    let mut merged: BTreeMap<String, Array> = BTreeMap::new();
    let mut tensors: HashMap<String, Vec<String>> = HashMap::new();
    decoder.visit_parameters(|it| _ = tensors.insert(it.path.to_owned(), it.tensors()));
    let mut count = 0;
    for product in decoder.products().into_iter().filter(|it| it.adapter().is_some()) {
        if product.is_quantized() {
            let what = format!(
                "`{}` is packed; an adapter is merged into weights that are not (`mlxgk generate \
                 --adapter` uses it as it is)",
                product.path()
            );
            return Err(Error::new(ErrorKind::Adapter, what));
        }
        let (name, matrix) = (format!("{}.weight", product.path()), product.merged()?);
        let names = tensors.remove(&name).unwrap_or_else(|| vec![name.clone()]);
        count += 1;
        if names == [name] {
            merged.extend(names.into_iter().map(|name| (name, matrix.clone())));
            continue;
        }
        // Of a mixture that is stored expert by expert.
        let each = matrix.split_equal(names.len() as i32, 0)?;
        for (name, matrix) in names.into_iter().zip(each) {
            merged.insert(name, matrix.squeeze_axes(&[0])?);
        }
    }
    write_folder(base, out, merged)?;
    Ok(count)
}
