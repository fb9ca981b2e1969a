//! The steering file: safetensors with one f32 tensor per hook point.

use std::{collections::HashMap, fs, path::Path};

use mlxgk_mlx_models::HookPoint;
use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};

use crate::{Error, ErrorKind, Result, SteeringVectors};

const FORMAT: &str = "mlxgk-steering";
const VERSION: &str = "1";

impl SteeringVectors {
    /// Reads a steering file: f32 tensors `[hidden]` named `resid_post.{layer}` (also `resid_pre`,
    /// `resid_mid`) or `final_norm`, with `format` = `mlxgk-steering` and `version` = `1` in the
    /// metadata.
    ///
    /// # Errors
    /// When the file cannot be read, is no steering file of this version, or holds a tensor that is
    /// no steering vector.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| {
            Error::new(ErrorKind::File, format!("cannot read {}: {e}", path.display()))
        })?;
        Self::from_bytes(&bytes).map_err(|it| it.of(path.display()))
    }

    /// Reads a steering file that is in memory.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let refuse = |what: String| Error::new(ErrorKind::File, what);
        let damaged = |e| refuse(format!("this is no safetensors file: {e}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        match metadata.get("format").map(String::as_str) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(refuse(format!("its format is {other:?}, not {FORMAT:?}")));
            }
            None => {
                let what = format!(
                    "it has no `format` in its metadata, so it is no {FORMAT} file; `mlxgk steer \
                     import` reads other formats"
                );
                return Err(refuse(what));
            }
        }
        match metadata.get("version").map(String::as_str) {
            Some(VERSION) => {}
            other => {
                let other = other.unwrap_or("missing");
                return Err(refuse(format!("its version is {other}; only {VERSION} is known")));
            }
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let vectors = tensors.iter().map(|(name, tensor)| {
            let point = point(name).ok_or_else(|| {
                refuse(format!(
                    "{name:?} is no hook point; there are resid_post.{{layer}} and final_norm"
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

    /// Writes the file, under a temporary name first.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        write(path, &self.to_bytes()?)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// When the vectors cannot be serialized.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let fail = |e| Error::new(ErrorKind::File, format!("cannot serialize the vectors: {e}"));
        let data: Vec<(String, usize, Vec<u8>)> = self
            .iter()
            .map(|(point, vector)| {
                let bytes = vector.iter().flat_map(|it| it.to_le_bytes()).collect();
                (point.to_string(), vector.len(), bytes)
            })
            .collect();
        let views = data
            .iter()
            .map(|(name, len, bytes)| Ok((name, TensorView::new(Dtype::F32, vec![*len], bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(fail)?;
        let mut metadata: HashMap<String, String> =
            self.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        metadata.insert("format".to_owned(), FORMAT.to_owned());
        metadata.insert("version".to_owned(), VERSION.to_owned());
        serialize(views, Some(metadata)).map_err(fail)
    }
}

/// Writes under a temporary name and renames, so that a file is whole or not there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("part");
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
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
            "{name:?} is {:?} of shape {:?}; a steering vector is F32 of shape [hidden]",
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
    fn what_is_no_steering_file_is_refused() {
        let file = |name: &str, shape: Vec<usize>, metadata: &[(&str, &str)]| {
            let data = vec![0_u8; 4 * shape.iter().product::<usize>()];
            let view = TensorView::new(Dtype::F32, shape, &data).unwrap();
            let metadata: HashMap<_, _> =
                metadata.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            serialize([(name, view)], Some(metadata)).unwrap()
        };
        let ours = [("format", FORMAT), ("version", VERSION)];
        for (bytes, words) in [
            (b"junk".to_vec(), "no safetensors file"),
            (file("resid_post.0", vec![2], &[]), "no `format`"),
            (file("resid_post.0", vec![2], &[("format", "pt")]), "format is \"pt\""),
            (
                file("resid_post.0", vec![2], &[("format", FORMAT), ("version", "2")]),
                "version is 2",
            ),
            (file("layer.0", vec![2], &ours), "\"layer.0\" is no hook point"),
            (file("resid_post.x", vec![2], &ours), "no hook point"),
            (file("resid_post.1", vec![2, 2], &ours), "shape [2, 2]"),
        ] {
            let error = SteeringVectors::from_bytes(&bytes).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
