//! The steering file: safetensors with one f32 tensor per hook point.

use std::{collections::BTreeMap, path::Path};

use mlxgk_mlx_models::HookPoint;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};

use crate::{Error, ErrorKind, Result, SteeringVectors, read_file, write_file};

/// The longest file of steering vectors, of ours or of another format: vectors for every place of the largest
/// models are a tenth of it.
const LONGEST: u64 = 512 << 20;

const FORMAT: &str = "mlxgk-steering";
const VERSION: &str = "1";

impl SteeringVectors {
    /// Reads a steering file: f32 tensors `[hidden]` named `resid_post.{layer}` (also `resid_pre`,
    /// `resid_mid`) or `final_norm`, with `format` = `mlxgk-steering` and `version` = `1` in the
    /// metadata.
    ///
    /// # Errors
    /// When the file cannot be read, is not a steering file of this version, or holds a tensor that
    /// is not a steering vector.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = read(path)?;
        Self::from_bytes(&bytes).map_err(|it| it.of(path.display()))
    }

    /// Reads a steering file that is in memory.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let refuse = |what: String| Error::new(ErrorKind::File, what);
        let other = [
            (&b"GGUF"[..], "GGUF"),
            (b"PK\x03\x04", "npz"),
            (b"\x93NUMPY", "npy"),
            (b"{\"", "svec"),
        ];
        if let Some((_, name)) = other.iter().find(|(magic, _)| bytes.starts_with(magic)) {
            let what = format!("a {name} file, not a {FORMAT} file; `mlxgk steer import` reads it");
            return Err(refuse(what));
        }
        let damaged = |e| refuse(format!("not a safetensors file: {e}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        match metadata.get("format").map(String::as_str) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(refuse(format!("its format is {other:?}; expected {FORMAT:?}")));
            }
            None => {
                let what = format!(
                    "its metadata has no `format`, so it is not a {FORMAT} file; `mlxgk steer import` \
                     reads other formats"
                );
                return Err(refuse(what));
            }
        }
        match metadata.get("version").map(String::as_str) {
            Some(VERSION) => {}
            other => {
                let other = other.unwrap_or("missing");
                return Err(refuse(format!("its version is {other}; expected {VERSION}")));
            }
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let vectors = tensors.iter().map(|(name, tensor)| {
            let point = point(name).ok_or_else(|| {
                refuse(format!(
                    "{name:?} is not a hook point; expected resid_post.{{layer}} or final_norm"
                ))
            })?;
            Ok((point, vector(name, &tensor)?))
        });
        let mut vectors = Self::new(vectors.collect::<Result<Vec<_>>>()?)?;
        for (key, value) in metadata {
            if key != "format" && key != "version" {
                vectors = vectors.note(&key, value);
            }
        }
        Ok(vectors)
    }

    /// Writes the file: whole, or not at all. Equal vectors and notes give equal bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write(path.as_ref(), &self.to_bytes())
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // By hand: `safetensors::serialize` takes a hash map, whose order differs from run to run.
        let mut metadata: BTreeMap<&str, &str> =
            self.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        metadata.insert("format", FORMAT);
        metadata.insert("version", VERSION);
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!(metadata));
        let mut data = Vec::new();
        for (point, vector) in self.iter() {
            let begin = data.len();
            data.extend(vector.iter().flat_map(|it| it.to_le_bytes()));
            let tensor = json!({"dtype": "F32", "shape": [vector.len()], "data_offsets": [begin, data.len()]});
            header.insert(point.to_string(), tensor);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // The data begins at a multiple of 8.
        header.resize(header.len().next_multiple_of(8), b' ');
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    read_file(path, LONGEST)
        .map_err(|e| Error::new(ErrorKind::File, format!("cannot read {}: {e}", path.display())))
}

/// Writes a whole file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, bytes)
        .map_err(|e| Error::new(ErrorKind::File, format!("cannot write {}: {e}", path.display())))
}

/// The hook point a tensor is named after.
fn point(name: &str) -> Option<HookPoint> {
    if name == "final_norm" {
        return Some(HookPoint::FinalNorm);
    }
    let (kind, layer) = name.split_once('.')?;
    let layer = layer.parse().ok()?;
    match kind {
        "resid_pre" => Some(HookPoint::ResidPre(layer)),
        "resid_mid" => Some(HookPoint::ResidMid(layer)),
        "resid_post" => Some(HookPoint::ResidPost(layer)),
        _ => None,
    }
}

pub(crate) fn vector(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>> {
    if tensor.dtype() != Dtype::F32 || tensor.shape().len() != 1 {
        let what = format!(
            "{name:?} is {:?} of shape {:?}; expected F32 of shape [hidden]",
            tensor.dtype(),
            tensor.shape()
        );
        return Err(Error::new(ErrorKind::File, what));
    }
    Ok(floats(tensor.data()))
}

/// Little-endian fp32 numbers.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    let value = |it: &[u8]| f32::from_le_bytes([it[0], it[1], it[2], it[3]]);
    bytes.chunks_exact(4).map(value).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs};

    use safetensors::serialize;

    use super::*;

    fn vectors() -> SteeringVectors {
        let layers =
            [(HookPoint::ResidPost(2), vec![1.0, -2.5]), (HookPoint::FinalNorm, vec![0.5, 0.0])];
        SteeringVectors::new(layers).unwrap().note("method", "mean-difference")
    }

    #[test]
    fn a_file_holds_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("joy.safetensors");
        vectors().save(&path).unwrap();
        assert_eq!(SteeringVectors::load(&path).unwrap(), vectors());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn equal_vectors_are_equal_bytes() {
        let once = || {
            let notes = ["a", "b", "c", "d", "e", "f", "g", "h"];
            notes.iter().fold(vectors(), |it, key| it.note(key, "x")).to_bytes()
        };
        assert!((0..20).all(|_| once() == once()));
    }

    /// `joy.safetensors` and `joy.gguf` are written under names of their own, and a file that has
    /// one of those names is left alone.
    #[test]
    fn temporary_names_do_not_collide() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("joy.part"), "mine").unwrap();
        vectors().save(at("joy.safetensors")).unwrap();
        assert_eq!(fs::read_to_string(at("joy.part")).unwrap(), "mine");
    }

    #[test]
    fn other_files_are_refused() {
        let file = |name: &str, shape: Vec<usize>, metadata: &[(&str, &str)]| {
            let data = vec![0_u8; 4 * shape.iter().product::<usize>()];
            let view = TensorView::new(Dtype::F32, shape, &data).unwrap();
            let metadata: HashMap<_, _> =
                metadata.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            serialize([(name, view)], Some(metadata)).unwrap()
        };
        let ours = [("format", FORMAT), ("version", VERSION)];
        for (bytes, words) in [
            (b"junk".to_vec(), "not a safetensors file"),
            (file("resid_post.0", vec![2], &[]), "no `format`"),
            (file("resid_post.0", vec![2], &[("format", "pt")]), "format is \"pt\""),
            (
                file("resid_post.0", vec![2], &[("format", FORMAT), ("version", "2")]),
                "version is 2",
            ),
            (file("layer.0", vec![2], &ours), "\"layer.0\" is not a hook point"),
            (file("resid_post.x", vec![2], &ours), "not a hook point"),
            (file("resid_post.1", vec![2, 2], &ours), "shape [2, 2]"),
        ] {
            let error = SteeringVectors::from_bytes(&bytes).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
