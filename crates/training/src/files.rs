//! Safetensors files: read with their names, written so that no half of one is ever there.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read, Seek},
    path::Path,
};

use mlx_rs::Array;
use mlxgk_steering::open_file;
use safetensors::{
    SafeTensors,
    tensor::{Metadata, TensorView},
};

use crate::{Error, ErrorKind, Result, head::host};

/// The float tensors of a file, and its metadata.
pub(crate) struct Tensors {
    pub(crate) arrays: BTreeMap<String, Array>,
    pub(crate) metadata: HashMap<String, String>,
}

/// An error about a file.
pub(crate) fn failed(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::File, format!("{}: {why}", path.display()))
}

/// The longest header, as in the `safetensors` crate: 100 MB.
const LONGEST_HEADER: u64 = 100_000_000;

/// Reads a file of float tensors, of at most so many bytes; they come out in fp32.
pub(crate) fn read(path: &Path, most: u64) -> Result<Tensors> {
    let bytes = whole(path, most).map_err(|e| failed(path, format_args!("cannot be read: {e}")))?;
    let damaged = |e: safetensors::SafeTensorError| failed(path, format_args!("is damaged: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let mut arrays = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes).map_err(damaged)?.tensors() {
        let array = floats(&view).ok_or_else(|| {
            failed(path, format_args!("`{name}` is {:?}, not float", view.dtype()))
        })?;
        arrays.insert(name, array);
    }
    Ok(Tensors { arrays, metadata })
}

/// The bytes of a file, once its header has shown that it is one of tensors, and as long as it says.
fn whole(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = open_file(path, most)?;
    let about = file.metadata()?;
    if !about.is_file() {
        // A pipe has no length, and is read once.
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    let length = about.len();
    let described = described(&mut file, length)?;
    if described != length {
        return Err(io::Error::other(format!(
            "it is damaged: its header describes {described} bytes, and it has {length}"
        )));
    }
    file.rewind()?;
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How long the header of a file of so many bytes says that it is.
fn described(file: &mut File, length: u64) -> io::Result<u64> {
    let mut header = [0; 8];
    let is_long = length >= 8;
    if is_long {
        file.read_exact(&mut header)?;
    }
    let header = u64::from_le_bytes(header);
    if !is_long || header > LONGEST_HEADER || header + 8 > length {
        return Err(io::Error::other(format!(
            "it is truncated or not a safetensors file: it has {length} bytes"
        )));
    }
    let mut bytes = vec![0; header as usize];
    file.read_exact(&mut bytes)?;
    let metadata: Metadata = serde_json::from_slice(&bytes)
        .map_err(|e| io::Error::other(format!("it is damaged: its header is not one: {e}")))?;
    Ok((8 + header).saturating_add(metadata.data_len() as u64))
}

fn floats(view: &TensorView<'_>) -> Option<Array> {
    let shape: Vec<i32> = view.shape().iter().map(|&it| it as i32).collect();
    let bytes = view.data();
    let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
    let two = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let values: Vec<f32> = match view.dtype() {
        safetensors::Dtype::F32 => {
            let four = |it: &[u8]| f32::from_le_bytes([it[0], it[1], it[2], it[3]]);
            bytes.chunks_exact(4).map(four).collect()
        }
        safetensors::Dtype::BF16 => bytes.chunks_exact(2).map(|it| wide(two(it))).collect(),
        safetensors::Dtype::F16 => {
            bytes.chunks_exact(2).map(|it| half::f16::from_bits(two(it)).to_f32()).collect()
        }
        _ => return None,
    };
    Some(Array::from_slice(&values, &shape))
}

/// Writes tensors in fp32.
pub(crate) fn write(
    path: &Path,
    arrays: &[(String, Array)],
    metadata: HashMap<String, String>,
) -> Result<()> {
    let mut held = Vec::with_capacity(arrays.len());
    for (name, array) in arrays {
        let bytes: Vec<u8> = host(array)?.iter().flat_map(|it| it.to_le_bytes()).collect();
        let shape: Vec<usize> = array.shape().iter().map(|&it| it as usize).collect();
        held.push((name, shape, bytes));
    }
    let mut views = Vec::with_capacity(held.len());
    for (name, shape, bytes) in &held {
        let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)
            .map_err(|e| failed(path, e))?;
        views.push((name.as_str(), view));
    }
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(path, e))?;
    write_bytes(path, &bytes)
}

/// Writes a file, or leaves what was there as it was.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    mlxgk_steering::write_file(path, bytes)
        .map_err(|e| failed(path, format_args!("cannot be written: {e}")))
}
