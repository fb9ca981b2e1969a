//! Other projects' steering files, with their ways of counting layers.

mod gguf;
mod numpy;

use std::{collections::BTreeMap, path::Path};

use mlxgk_mlx_models::HookPoint;
use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};
use serde_json::{Map, Value, json};

use crate::{
    Error, ErrorKind, Result, SteeringVectors,
    file::{floats, read, write},
    names::named,
};

/// A file format of another project, and which block its numbers mean.
///
/// ```
/// use mlxgk_steering::{Format, HookPoint, SteeringVectors};
///
/// let point = HookPoint::ResidPost(2);
/// let last = (HookPoint::FinalNorm, vec![1.0, 1.0]);
/// let joy = SteeringVectors::new([(point, vec![0.5, 1.0]), last])?;
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("joy.gguf");
/// assert_eq!(Format::of(&path)?, Format::Gguf);
/// // llama.cpp's format has a place after blocks only.
/// assert_eq!(Format::Gguf.export(&joy, "llama", &path)?, [HookPoint::FinalNorm]);
/// assert_eq!(Format::Gguf.import(&path)?.get(point), joy.get(point));
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// GGUF control vector (repeng; what llama.cpp loads): `direction.k` applies after block `k`,
    /// counted from 0. llama.cpp cannot reach block 0.
    Gguf,
    /// GGUF as llama.cpp's `cvector-generator` writes it: `direction.k` was read after block `k - 1`, so
    /// its own loader adds it one block late. Imported where it was read.
    GgufGenerator,
    /// Persona vectors: an array `[layers + 1, hidden]` (npz, npy or safetensors). Row `i` is HF's
    /// `hidden_states[i]`, so it applies after block `i - 1`; row 0, the embeddings, is left out.
    Persona,
    /// IBM activation-steering `.svec`: entry `k` was read after block `k`.
    Svec,
    /// The same, where that project adds it: entry `k` goes to the input of block `k`.
    SvecApplied,
}

named! { Format: "format" {
    "gguf" => Gguf,
    "gguf-generator" => GgufGenerator,
    "persona" => Persona,
    "svec" => Svec,
    "svec-applied" => SvecApplied,
} }

impl Format {
    /// The format a file's name suggests: `.gguf`, `.svec`, or `.npz`, `.npy`, `.safetensors` for persona
    /// vectors.
    ///
    /// # Errors
    /// When it suggests none.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match path.extension().and_then(|it| it.to_str()) {
            Some("gguf") => Ok(Self::Gguf),
            Some("svec") => Ok(Self::Svec),
            Some("npz" | "npy" | "safetensors") => Ok(Self::Persona),
            _ => {
                let what = format!(
                    "cannot tell the format from the name of {}; expected .gguf, .svec, .npz, .npy \
                     or .safetensors, or a format that is named explicitly",
                    path.display()
                );
                Err(Error::new(ErrorKind::File, what))
            }
        }
    }

    /// Reads a file of this format.
    ///
    /// # Errors
    /// When it cannot be read or is of another format.
    pub fn import(self, path: impl AsRef<Path>) -> Result<SteeringVectors> {
        let path = path.as_ref();
        let bytes = read(path)?;
        let vectors = match self {
            Self::Gguf => from_gguf(&bytes, 0),
            Self::GgufGenerator => from_gguf(&bytes, 1),
            Self::Persona => from_persona(&bytes),
            Self::Svec => from_svec(&bytes, HookPoint::ResidPost),
            Self::SvecApplied => from_svec(&bytes, |layer| match layer.checked_sub(1) {
                Some(before) => HookPoint::ResidPost(before),
                None => HookPoint::ResidPre(0),
            }),
        };
        vectors.map(|it| it.note("source", self.to_string())).map_err(|it| it.of(path.display()))
    }

    /// Writes the layers' vectors in this format and returns those the format has no place for.
    /// `model` names the model in a GGUF file.
    ///
    /// # Errors
    /// When nothing is left to write, or the file cannot be written.
    pub fn export(
        self,
        vectors: &SteeringVectors,
        model: &str,
        path: impl AsRef<Path>,
    ) -> Result<Vec<HookPoint>> {
        let (kept, left): (Vec<_>, Vec<_>) = vectors.iter().partition(|(point, _)| match point {
            HookPoint::ResidPost(layer) => self != Self::Gguf || *layer > 0,
            _ => false,
        });
        if kept.is_empty() {
            let what = format!("none of the vectors has a place in a {self} file");
            return Err(Error::new(ErrorKind::Layer, what));
        }
        let layers: BTreeMap<usize, &[f32]> = kept
            .into_iter()
            .filter_map(|(point, vector)| match point {
                HookPoint::ResidPost(layer) => Some((layer, vector)),
                _ => None,
            })
            .collect();
        let bytes = match self {
            Self::Gguf => gguf::write(&layers, model),
            Self::GgufGenerator => {
                let shifted = layers.into_iter().map(|(layer, it)| (layer + 1, it)).collect();
                gguf::write(&shifted, model)
            }
            Self::Persona => to_persona(&layers)?,
            Self::Svec => to_svec(&layers, model),
            Self::SvecApplied => {
                to_svec(&layers.into_iter().map(|(layer, it)| (layer + 1, it)).collect(), model)
            }
        };
        write(path.as_ref(), &bytes)?;
        Ok(left.into_iter().map(|it| it.0).collect())
    }
}

fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::File, what))
}

/// `direction.k` to the output of block `k - late`.
fn from_gguf(bytes: &[u8], late: usize) -> Result<SteeringVectors> {
    let tensors = gguf::read(bytes)?;
    let vectors = tensors.into_iter().map(|(name, vector)| {
        let layer = name.strip_prefix("direction.").and_then(|it| it.parse::<usize>().ok());
        match layer.and_then(|it| it.checked_sub(late)) {
            Some(layer) => Ok((HookPoint::ResidPost(layer), vector)),
            None => refuse(format!(
                "{name:?} is not the name of a control vector; expected direction.k"
            )),
        }
    });
    SteeringVectors::new(vectors.collect::<Result<Vec<_>>>()?)
}

/// Row `i` to the output of block `i - 1`.
fn from_persona(bytes: &[u8]) -> Result<SteeringVectors> {
    let (shape, values) = match bytes {
        [b'P', b'K', ..] => numpy::read_npz(bytes)?,
        [0x93, b'N', ..] => numpy::read_npy(bytes)?,
        _ => the_only_tensor(bytes)?,
    };
    let [rows, width] = shape[..] else {
        return refuse(format!("its array has shape {shape:?}; expected [layers + 1, hidden]"));
    };
    if rows < 2 || width == 0 {
        return refuse(format!("its array has shape {shape:?}; expected [layers + 1, hidden]"));
    }
    let rows = values.chunks_exact(width).enumerate().skip(1);
    // A file made from some layers only has zeros for the others.
    let rows = rows.filter(|(_, row)| row.iter().any(|&it| it != 0.0));
    SteeringVectors::new(rows.map(|(row, it)| (HookPoint::ResidPost(row - 1), it.to_vec())))
}

fn the_only_tensor(bytes: &[u8]) -> Result<(Vec<usize>, Vec<f32>)> {
    let file = SafeTensors::deserialize(bytes);
    let file =
        file.or_else(|e| refuse(format!("it is not an npz, npy or safetensors file: {e}")))?;
    let mut tensors = file.iter();
    match (tensors.next(), tensors.next()) {
        (Some((_, tensor)), None) if tensor.dtype() == Dtype::F32 => {
            Ok((tensor.shape().to_vec(), floats(tensor.data())))
        }
        (Some((name, tensor)), None) => {
            refuse(format!("{name:?} is {:?}; only F32 is read", tensor.dtype()))
        }
        _ => refuse("a file of persona vectors holds exactly one array"),
    }
}

fn to_persona(layers: &BTreeMap<usize, &[f32]>) -> Result<Vec<u8>> {
    let last = layers.keys().next_back().copied().unwrap_or(0);
    let width = layers.values().next().map_or(0, |it| it.len());
    let mut rows = vec![0.0_f32; (last + 2) * width];
    for (layer, vector) in layers {
        rows[(layer + 1) * width..][..width].copy_from_slice(vector);
    }
    let bytes: Vec<u8> = rows.iter().flat_map(|it| it.to_le_bytes()).collect();
    let fail = |e| Error::new(ErrorKind::File, format!("cannot serialize the vectors: {e}"));
    let view = TensorView::new(Dtype::F32, vec![last + 2, width], &bytes).map_err(fail)?;
    serialize([("vectors", view)], None).map_err(fail)
}

fn from_svec(bytes: &[u8], place: fn(usize) -> HookPoint) -> Result<SteeringVectors> {
    let wrong =
        "it is not a .svec file, which is JSON with \"directions\", an array of numbers per layer";
    let Ok(file) = serde_json::from_slice::<Value>(bytes) else { return refuse(wrong) };
    let Some(directions) = file["directions"].as_object() else { return refuse(wrong) };
    let vectors = directions.iter().map(|(layer, values)| {
        let layer: Option<usize> = layer.parse().ok();
        let values = values.as_array().and_then(|it| {
            it.iter().map(|it| it.as_f64().map(|it| it as f32)).collect::<Option<Vec<f32>>>()
        });
        match (layer, values) {
            (Some(layer), Some(values)) => Ok((place(layer), values)),
            _ => refuse(wrong),
        }
    });
    let vectors = SteeringVectors::new(vectors.collect::<Result<Vec<_>>>()?)?;
    Ok(match file["model_type"].as_str() {
        Some(model) => vectors.note("model", model),
        None => vectors,
    })
}

fn to_svec(layers: &BTreeMap<usize, &[f32]>, model: &str) -> Vec<u8> {
    let directions: Map<String, Value> =
        layers.iter().map(|(layer, vector)| (layer.to_string(), json!(vector))).collect();
    json!({"model_type": model, "directions": directions, "explained_variances": {}})
        .to_string()
        .into_bytes()
}
