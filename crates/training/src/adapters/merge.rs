//! Adapters made part of the weights, in memory and on disk.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use mlx_rs::{Array, Dtype, ops::quantize, transforms::eval};
use mlxgk_mlx_models::{Adapter, ComputeDtype, Decoder, ParameterKind};
use safetensors::{SafeTensors, tensor::TensorView};

use super::{clear_adapters, load_adapter};
use crate::{
    Error, ErrorKind, Result,
    files::{failed, write_bytes},
    head::host,
    trainee::put,
};

/// What a merge took away, so that it can be given back to the bit.
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
    for linear in decoder.linears() {
        if let Some(adapter) = linear.adapter() {
            let matrix = linear.merged()?;
            matrix.eval()?;
            merged.push((linear.path().to_owned(), matrix));
            adapters.push((linear.path().to_owned(), adapter.clone()));
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
                let group_size = matrix.dim(1) / scales.dim(1);
                let bits = words.dim(1) * 32 / matrix.dim(1);
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
            let linear = decoder.linear_mut(&path).ok_or_else(|| {
                Error::new(ErrorKind::Adapter, format!("the model has no `{path}` to be restored"))
            })?;
            linear.set_adapter(adapter)?;
        }
        Ok(())
    }
}

/// Writes the model in `base` to `out` with the adapter in it: every matrix that is adapted in the dtype it
/// had, everything else as it was. Returns how many matrices were.
///
/// # Errors
/// When a file cannot be read or written, `out` exists, the adapter is for another model, or a matrix that
/// it adapts is packed or stored in parts.
pub fn merge_folder(base: &Path, adapter: &Path, out: &Path) -> Result<usize> {
    if out.exists() {
        return Err(failed(out, "is there already"));
    }
    let mut decoder = Decoder::load(base, ComputeDtype::Float32)?;
    load_adapter(&mut decoder, adapter)?;
    let mut merged: BTreeMap<String, Array> = BTreeMap::new();
    for linear in decoder.linears().into_iter().filter(|it| it.adapter().is_some()) {
        if linear.is_quantized() {
            let what = format!(
                "`{}` is packed; an adapter is merged into weights that are not (`mlxgk generate \
                 --adapter` uses it as it is)",
                linear.path()
            );
            return Err(Error::new(ErrorKind::Adapter, what));
        }
        merged.insert(linear.path().to_owned(), linear.merged()?);
    }
    let count = merged.len();
    let parent = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let made = tempfile::Builder::new()
        .prefix(".merging-")
        .tempdir_in(parent)
        .map_err(|e| failed(parent, format_args!("cannot be written to: {e}")))?;
    let entries =
        fs::read_dir(base).map_err(|e| failed(base, format_args!("cannot be read: {e}")))?;
    for entry in entries {
        let path = entry.map_err(|e| failed(base, format_args!("cannot be read: {e}")))?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        let to = made.path().join(name);
        if path.extension().is_some_and(|it| it == "safetensors") {
            rewrite(&path, &to, &mut merged)?;
        } else {
            fs::copy(&path, &to)
                .map_err(|e| failed(&path, format_args!("cannot be copied: {e}")))?;
        }
    }
    if let Some(path) = merged.keys().next() {
        let what = format!("no tensor is `{path}.weight`, which the adapter is for");
        return Err(failed(base, what));
    }
    let made = made.keep();
    fs::rename(&made, out).map_err(|e| {
        // What was made is of no use under that name.
        let _ = fs::remove_dir_all(&made);
        failed(out, format_args!("cannot be made: {e}"))
    })?;
    Ok(count)
}

/// Copies a file of tensors, those in `merged` replaced and taken from there.
fn rewrite(from: &Path, to: &Path, merged: &mut BTreeMap<String, Array>) -> Result<()> {
    let bytes = fs::read(from).map_err(|e| failed(from, format_args!("cannot be read: {e}")))?;
    let damaged = |e: safetensors::SafeTensorError| failed(from, format_args!("is damaged: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let metadata = header.metadata().clone();
    let tensors = SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let mut replaced: HashMap<String, Vec<u8>> = HashMap::new();
    for (name, view) in tensors.tensors() {
        let Some(stem) = name.strip_suffix(".weight") else { continue };
        let is_it = |path: &String| stem == path || stem.ends_with(&format!(".{path}"));
        let Some(path) = merged.keys().find(|path| is_it(path)).cloned() else { continue };
        let Some(matrix) = merged.remove(&path) else { continue };
        replaced.insert(name, narrowed(from, &matrix, view.dtype())?);
    }
    let mut views = Vec::new();
    for (name, view) in tensors.tensors() {
        let view = match replaced.get(&name) {
            Some(data) => {
                TensorView::new(view.dtype(), view.shape().to_vec(), data).map_err(damaged)?
            }
            None => view,
        };
        views.push((name, view));
    }
    let bytes = safetensors::serialize(views, metadata).map_err(damaged)?;
    write_bytes(to, &bytes)
}

/// The bytes of a matrix in a dtype of float.
fn narrowed(file: &Path, matrix: &Array, dtype: safetensors::Dtype) -> Result<Vec<u8>> {
    let rounded = |dtype| -> Result<Vec<f32>> { host(&matrix.as_dtype(dtype)?) };
    Ok(match dtype {
        safetensors::Dtype::F32 => host(matrix)?.iter().flat_map(|it| it.to_le_bytes()).collect(),
        safetensors::Dtype::BF16 => {
            let values = rounded(Dtype::Bfloat16)?;
            values.iter().flat_map(|it| half::bf16::from_f32(*it).to_le_bytes()).collect()
        }
        safetensors::Dtype::F16 => {
            let values = rounded(Dtype::Float16)?;
            values.iter().flat_map(|it| half::f16::from_f32(*it).to_le_bytes()).collect()
        }
        other => return Err(failed(file, format_args!("holds weights as {other:?}"))),
    })
}
