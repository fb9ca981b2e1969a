//! Which model it is: a hash that tells decoders apart by their weights.

use std::fmt::Write;

use mlx_rs::{Array, Dtype, error::Exception, transforms::eval};
use sha2::{Digest, Sha256};

use crate::{Decoder, Error, ErrorKind, Result};

/// Numbers that are looked at of each parameter.
const SAMPLES: usize = 64;

impl Decoder {
    /// A hash of everything that a cache depends on: architecture, compute dtype, adapters, and of each
    /// parameter its name, shape, dtype and 64 of its numbers, evenly spread. Two models that were
    /// trained apart, by however little, differ in some of those; reading all numbers of a large model
    /// would take as long as loading it.
    ///
    /// ```
    /// use mlxgk_mlx_models::{ComputeDtype, Decoder};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
    /// let model = Decoder::load(folder, ComputeDtype::Float32)?;
    /// let again = Decoder::load(folder, ComputeDtype::Float32)?;
    /// assert_eq!(model.fingerprint()?, again.fingerprint()?);
    /// let half = Decoder::load(folder, ComputeDtype::Bfloat16)?;
    /// assert_ne!(model.fingerprint()?, half.fingerprint()?);
    /// # Ok::<(), mlxgk_mlx_models::Error>(())
    /// ```
    ///
    /// # Errors
    /// When MLX fails.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let mut note = |text: String| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        note(format!("{} {:?} {:?} {:?}", self.model_type, self.dtype, self.dims, self.options));
        self.blocks
            .iter()
            .filter_map(|it| it.attention())
            .for_each(|attention| note(attention.settings()));
        let mut samples = Vec::new();
        let mut sampled = Ok(());
        self.visit_parameters(|it| {
            note(format!("{} {:?} {:?}", it.path, it.array.shape(), it.array.dtype()));
            match sample(it.array) {
                Ok(array) => samples.push(array),
                Err(e) => sampled = Err(e),
            }
        });
        for product in self.products() {
            let Some(adapter) = product.adapter() else { continue };
            note(format!("adapter of {} × {}", product.path(), adapter.scale()));
            for array in [adapter.a(), adapter.b()].into_iter().chain(adapter.magnitude()) {
                note(format!("{:?} {:?}", array.shape(), array.dtype()));
                match sample(array) {
                    Ok(array) => samples.push(array),
                    Err(e) => sampled = Err(e),
                }
            }
        }
        let failed = |e| Error::mlx("looking at the parameters", &e);
        sampled.and_then(|()| eval(&samples)).map_err(failed)?;
        for array in &samples {
            let unreadable = |e| Error::new(ErrorKind::Weights, format!("a parameter: {e}"));
            if array.dtype() == Dtype::Uint32 {
                let words = array.try_as_slice::<u32>().map_err(unreadable)?;
                words.iter().for_each(|it| hash.update(it.to_le_bytes()));
            } else {
                let numbers = array.try_as_slice::<f32>().map_err(unreadable)?;
                numbers.iter().for_each(|it| hash.update(it.to_le_bytes()));
            }
        }
        Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
            // A string takes whatever is written to it.
            _ = write!(text, "{byte:02x}");
            text
        }))
    }
}

/// So many numbers of an array, evenly spread; packed words as they are.
fn sample(array: &Array) -> Result<Array, Exception> {
    let size = array.size();
    let count = size.min(SAMPLES);
    let places: Vec<u32> = (0..count).map(|it| (it * size / count) as u32).collect();
    let places = Array::from_slice(&places, &[count as i32]);
    let taken = array.flatten(None, None)?.take(places)?;
    if taken.dtype() == Dtype::Uint32 { Ok(taken) } else { taken.as_dtype(Dtype::Float32) }
}
