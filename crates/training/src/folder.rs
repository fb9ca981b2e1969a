//! A model's folder written with some of its tensors replaced: what a merge and a training of the weights
//! themselves end in.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use mlx_rs::{Array, Dtype};
use safetensors::{SafeTensors, tensor::TensorView};

use crate::{
    Result,
    files::{failed, write_bytes},
    head::host,
};

/// Writes the folder `base` to `out`: the tensors in `replaced`, by the names of the model's parameters,
/// in the dtype they are stored in, everything else as it is. A folder `out` that is there is replaced as
/// a whole.
pub(crate) fn write_folder(
    base: &Path,
    out: &Path,
    mut replaced: BTreeMap<String, Array>,
) -> Result<()> {
    let parent = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let made = tempfile::Builder::new()
        .prefix(".writing-")
        .tempdir_in(parent)
        .map_err(|e| failed(parent, format_args!("cannot be written to: {e}")))?;
    let new = made.path().join("new");
    fs::create_dir(&new).map_err(|e| failed(&new, format_args!("cannot be made: {e}")))?;
    for path in files(base)? {
        let Some(name) = path.file_name() else { continue };
        let to = new.join(name);
        if is_tensors(&path) {
            rewrite(&path, &to, &mut replaced)?;
        } else {
            fs::copy(&path, &to)
                .map_err(|e| failed(&path, format_args!("cannot be copied: {e}")))?;
        }
    }
    if let Some(name) = replaced.keys().next() {
        return Err(not_stored(base, name));
    }
    let moved = |from: &Path, to: &Path| {
        fs::rename(from, to).map_err(|e| failed(out, format_args!("cannot be made: {e}")))
    };
    let old = made.path().join("old");
    if out.exists() {
        moved(out, &old)?;
    }
    moved(&new, out).inspect_err(|_| {
        // The error says what failed; this only gives back what was there.
        let _ = fs::rename(&old, out);
    })
}

/// Checks that `base` stores each of these parameters as the model holds it, in fp32: under a name that
/// [`write_folder`] finds, in the same layout.
pub(crate) fn check_stored(base: &Path, parameters: &[(&str, &Array)]) -> Result<()> {
    let mut missing: BTreeMap<&str, &Array> = parameters.iter().copied().collect();
    for path in files(base)?.into_iter().filter(|it| is_tensors(it)) {
        let bytes =
            fs::read(&path).map_err(|e| failed(&path, format_args!("cannot be read: {e}")))?;
        let damaged = |e| failed(&path, format_args!("is damaged: {e}"));
        for (name, view) in SafeTensors::deserialize(&bytes).map_err(damaged)?.tensors() {
            let Some(parameter) = missing.keys().copied().find(|it| is_of(&name, it)) else {
                continue;
            };
            let Some(array) = missing.remove(parameter) else { continue };
            if bytes_in(&path, &name, array, view.dtype())? != view.data() {
                let what = format!(
                    "stores `{name}` in another layout or precision than the model holds it in; train an \
                     adapter, or load the model in the file's precision"
                );
                return Err(failed(&path, what));
            }
        }
    }
    match missing.keys().next() {
        None => Ok(()),
        Some(name) => Err(not_stored(base, name)),
    }
}

fn not_stored(base: &Path, name: &str) -> crate::Error {
    failed(base, format_args!("has no tensor `{name}` that could be replaced"))
}

/// Whether a tensor of a file is this parameter: by the same name, behind the prefix of a wrapper, or
/// without the `model.` that files of base models leave out.
fn is_of(stored: &str, parameter: &str) -> bool {
    let behind_prefix = || stored.strip_suffix(parameter).is_some_and(|it| it.ends_with('.'));
    stored == parameter
        || behind_prefix()
        || parameter.strip_prefix("model.").is_some_and(|it| it == stored)
}

fn is_tensors(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "safetensors")
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| failed(folder, format_args!("cannot be read: {e}"));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Copies a file of tensors, those in `replaced` taken from there.
fn rewrite(from: &Path, to: &Path, replaced: &mut BTreeMap<String, Array>) -> Result<()> {
    let bytes = fs::read(from).map_err(|e| failed(from, format_args!("cannot be read: {e}")))?;
    let damaged = |e: safetensors::SafeTensorError| failed(from, format_args!("is damaged: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let metadata = header.metadata().clone();
    let tensors = SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let mut new: HashMap<String, Vec<u8>> = HashMap::new();
    for (name, view) in tensors.tensors() {
        let Some(parameter) = replaced.keys().find(|it| is_of(&name, it)).cloned() else {
            continue;
        };
        let Some(array) = replaced.remove(&parameter) else { continue };
        let bytes = bytes_in(from, &name, &array, view.dtype())?;
        new.insert(name, bytes);
    }
    let mut views = Vec::new();
    for (name, view) in tensors.tensors() {
        let view = match new.get(&name) {
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

/// The bytes of a tensor of a file in a dtype of float.
fn bytes_in(file: &Path, name: &str, array: &Array, dtype: safetensors::Dtype) -> Result<Vec<u8>> {
    let rounded = |dtype| -> Result<Vec<f32>> {
        let values = host(&array.as_dtype(dtype)?)?;
        match values.iter().all(|it| it.is_finite()) {
            true => Ok(values),
            false => Err(failed(
                file,
                format_args!("stores `{name}` as {dtype:?}, which has no room for its numbers now"),
            )),
        }
    };
    Ok(match dtype {
        safetensors::Dtype::F32 => host(array)?.iter().flat_map(|it| it.to_le_bytes()).collect(),
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
