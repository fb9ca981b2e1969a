//! The container: safetensors, read whole and written whole or not at all.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::Path,
};

use half::{bf16, f16};
use mlx_rs::{Array, Dtype, error::AsSliceError};
use safetensors::{Dtype as Stored, SafeTensors, tensor::Metadata};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// The longest header, as in the `safetensors` crate: 100 MB.
const LONGEST_HEADER: u64 = 100_000_000;

/// The tensors and the metadata of a file.
#[derive(Debug, Default)]
pub(crate) struct Container {
    pub(crate) tensors: BTreeMap<String, Array>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Container {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let is_file = fs::metadata(path).map(|it| it.is_file());
        if is_file.is_ok_and(|it| !it) {
            return Err(Error::file(format!("{name} is not a file")));
        }
        let failed = |e: std::io::Error| Error::file(format!("cannot read {name}: {e}"));
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut bytes = Vec::new();
        // Gigabytes are not read before the header has shown that they are tensors.
        (&mut file).take(8).read_to_end(&mut bytes).map_err(failed)?;
        let header = bytes.first_chunk::<8>().map_or(u64::MAX, |it| u64::from_le_bytes(*it));
        if header > LONGEST_HEADER || header + 8 > length {
            let what = "is truncated or not a safetensors file";
            return Err(Error::file(format!("{name} {what}: it has {length} bytes")));
        }
        (&mut file).take(header).read_to_end(&mut bytes).map_err(failed)?;
        if let Ok(described) = serde_json::from_slice::<Metadata>(&bytes[8..]) {
            let expected = (8 + header).saturating_add(described.data_len() as u64);
            if expected != length {
                let what = format!("its header describes {expected} bytes, and it has {length}");
                return Err(Error::file(format!("{name} is truncated or damaged: {what}")));
            }
            bytes.reserve_exact((length - 8 - header) as usize);
            file.read_to_end(&mut bytes).map_err(failed)?;
        }
        Self::parse(&bytes).map_err(|what| Error::file(format!("{name} {what}")))
    }

    /// An error is the end of a sentence about the file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let header = bytes.first_chunk::<8>().map(|it| u64::from_le_bytes(*it));
        let rest = bytes.len().saturating_sub(8) as u64;
        if header.is_none_or(|it| it > rest) {
            return Err(format!(
                "is truncated or not a safetensors file: it has {} bytes",
                bytes.len()
            ));
        }
        let (header, described) = SafeTensors::read_metadata(bytes)
            .map_err(|e| format!("is truncated or not a safetensors file: {e}"))?;
        let (expected, actual) = (8 + header + described.data_len(), bytes.len());
        if expected != actual {
            return Err(format!(
                "is truncated or damaged: its header describes {expected} bytes, and it has {actual}"
            ));
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| format!("is damaged: {e}"))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let shape: Option<Vec<i32>> =
                view.shape().iter().map(|&it| i32::try_from(it).ok()).collect();
            let size = |shape: &[i32]| shape.iter().try_fold(1_i32, |all, it| all.checked_mul(*it));
            let Some(shape) = shape.filter(|it| size(it).is_some()) else {
                return Err(format!("holds {name:?} in a shape that MLX cannot hold"));
            };
            let data = view.data();
            let array = match view.dtype() {
                Stored::F32 => Array::from_slice(&numbers(data, f32::from_le_bytes), &shape),
                Stored::F16 => Array::from_slice(&numbers(data, f16::from_le_bytes), &shape),
                Stored::BF16 => Array::from_slice(&numbers(data, bf16::from_le_bytes), &shape),
                Stored::U32 => Array::from_slice(&numbers(data, u32::from_le_bytes), &shape),
                Stored::I32 => Array::from_slice(&numbers(data, i32::from_le_bytes), &shape),
                other => return Err(format!("holds {name:?} as {other:?}, which no cache has")),
            };
            tensors.insert(name.to_owned(), array);
        }
        let metadata = described.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { tensors, metadata })
    }

    /// The bytes: equal containers give equal ones.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        // By hand: `safetensors::serialize` takes a hash map, whose order differs from run to run.
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!(self.metadata));
        let mut data = Vec::new();
        for (name, array) in &self.tensors {
            let begin = data.len();
            let dtype = append(&mut data, array)
                .map_err(|e| Error::write(format!("cannot write {name}: {e}")))?;
            let tensor = json!({
                "dtype": dtype, "shape": array.shape(), "data_offsets": [begin, data.len()],
            });
            header.insert(name.clone(), tensor);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // The data begins at a multiple of 8.
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok([&(header.len() as u64).to_le_bytes()[..], &header, &data].concat())
    }

    /// Writes the file by way of a temporary one beside it that nothing else has the name of, so that
    /// what was there stays whole until the new one is.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".cache-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let persist = || -> std::io::Result<()> {
            let mut file = builder.tempfile_in(folder)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        persist().map_err(|e| Error::write(format!("cannot write {}: {e}", path.display())))
    }
}

fn numbers<T, const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|&it| read(it)).collect()
}

/// Appends an array's numbers; returns the name of their type.
fn append(data: &mut Vec<u8>, array: &Array) -> Result<&'static str, AsSliceError> {
    let dtype = match array.dtype() {
        Dtype::Float16 => "F16",
        Dtype::Bfloat16 => "BF16",
        Dtype::Uint32 => "U32",
        Dtype::Int32 => "I32",
        _ => "F32",
    };
    if array.size() == 0 {
        return Ok(dtype);
    }
    let array = array.contiguous().map_err(AsSliceError::Exception)?;
    match array.dtype() {
        Dtype::Float16 => extend(data, &array, f16::to_le_bytes)?,
        Dtype::Bfloat16 => extend(data, &array, bf16::to_le_bytes)?,
        Dtype::Uint32 => extend(data, &array, u32::to_le_bytes)?,
        Dtype::Int32 => extend(data, &array, i32::to_le_bytes)?,
        // Any other type than fp32 is an error here.
        _ => extend(data, &array, f32::to_le_bytes)?,
    }
    Ok(dtype)
}

fn extend<T: mlx_rs::ArrayElement + Copy, const N: usize>(
    data: &mut Vec<u8>,
    array: &Array,
    bytes: impl Fn(T) -> [u8; N],
) -> Result<(), AsSliceError> {
    data.extend(array.try_as_slice::<T>()?.iter().flat_map(|&it| bytes(it)));
    Ok(())
}
