//! Prompt caches: made, kept in files, and resumed by the model they belong to.

use std::{collections::BTreeMap, path::Path};

use mlx_rs::{
    Array, Dtype,
    ops::{dequantize, indexing::TryIndexOp},
};
use mlxgk_kv_cache::{CacheFile, CacheOrigin, CacheState, KvCache};
use mlxgk_mlx_models::NoHook;

use crate::{AssistedRequest, Error, ErrorKind, Model, Result, start::read};

/// How far keys may be from those that a file holds, by the norm of their difference relative to theirs:
/// what rounding comes to in fp32, in half precision, and in a few bits. Those of another text are about
/// as far off as they are long.
const SAME: [f32; 3] = [1e-3, 0.03, 0.1];

impl Model {
    /// Reads a request's prompt and returns the cache, without generating anything: for
    /// [`Request::cache`](crate::Request::cache), as often as it is forked, or for a
    /// [file](Self::save_cache).
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let shared = model.read(Request::new("Once upon a time, there was a fox who"))?;
    /// for end in [" liked ships", " lived by the sea"] {
    ///     let prompt = format!("Once upon a time, there was a fox who{end}");
    ///     let generation = model.generate(Request::new(prompt).cache(shared.fork()))?;
    ///     assert!(generation.cached_tokens > 8);
    /// }
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and when there are several prompts, or negative ones.
    pub fn read<'a>(&'a self, request: impl Into<AssistedRequest<'a>>) -> Result<KvCache> {
        read(self.plan(request)?)
    }

    /// What tells this model's caches from another's: see
    /// [`Decoder::fingerprint`](mlxgk_mlx_models::Decoder::fingerprint).
    ///
    /// # Errors
    /// When MLX fails.
    pub fn cache_origin(&self) -> Result<CacheOrigin> {
        Ok(CacheOrigin {
            model: self.name().to_owned(),
            fingerprint: self.fingerprint()?.to_owned(),
            notes: BTreeMap::new(),
        })
    }

    /// Writes a cache of this model to a file, whole or not at all; see
    /// [`KvCache::save`].
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// let file = folder.path().join("fox.safetensors");
    /// model.save_cache(&model.read(Request::new("The quick brown fox"))?, &file)?;
    /// let cache = model.load_cache(&file)?;
    /// let generation = model.generate(Request::new("The quick brown fox jumps").cache(cache))?;
    /// assert!(generation.cached_tokens > 2);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the cache has several rows or none, or the file cannot be written.
    pub fn save_cache(&self, cache: &KvCache, path: impl AsRef<Path>) -> Result<()> {
        Ok(cache.save(path, &self.cache_origin()?)?)
    }

    /// The cache that a file holds. It keeps the name of the steering it was filled under, and is not
    /// continued under another.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, is a cache of another model, or does not say what tokens
    /// it holds.
    pub fn load_cache(&self, path: impl AsRef<Path>) -> Result<KvCache> {
        let file = CacheFile::open(path)?;
        file.check_origin(&self.cache_origin()?)?;
        Ok(file.into_cache(self.decoder().cache_layers())?)
    }

    /// The cache of a file that mlx-lm wrote, which does not say what tokens it holds: they are taken to
    /// be the first of `tokens`. That is checked by reading the last of them again, which tells another
    /// text or model, but not each changed word.
    ///
    /// # Errors
    /// As [`load_cache`](Self::load_cache), and when there are fewer tokens than the file holds or it is
    /// of other ones.
    pub fn load_cache_of(&self, path: impl AsRef<Path>, tokens: &[u32]) -> Result<KvCache> {
        let name = path.as_ref().display().to_string();
        let wrong = |what: String| Error::new(ErrorKind::Request, format!("{name} {what}"));
        let file = CacheFile::open(path)?;
        let (len, given) = (file.len(), tokens.len());
        let Some(held) = tokens.get(..len) else {
            return Err(wrong(format!("holds {len} tokens, and the prompt has only {given}")));
        };
        let cache = file.into_cache_of(self.decoder().cache_layers(), held)?;
        let mut again = cache.fork();
        again.trim(1)?;
        self.decoder().hidden(&[&held[len - 1..]], &mut again, &mut NoHook)?;
        let state = cache.state()?;
        let same = match state.arrays.get("layers.0.keys").map(Array::dtype) {
            Some(Dtype::Float32) => SAME[0],
            Some(_) => SAME[1],
            None => SAME[2],
        };
        let off = last_keys(&state)?
            .into_iter()
            .zip(last_keys(&again.state()?)?)
            .map(|(theirs, ours)| distance(&theirs, &ours))
            .fold(0.0, f32::max);
        if off.is_nan() || off > same {
            return Err(wrong(format!(
                "is of another text than the prompt's first {len} tokens, or of another model"
            )));
        }
        Ok(cache)
    }
}

/// The keys of the last token, by layer.
fn last_keys(state: &CacheState) -> Result<Vec<Vec<f32>>> {
    let mut keys = Vec::new();
    for layer in 0..state.description.layers().len() {
        let array = |name: &str| state.arrays.get(&format!("layers.{layer}.{name}"));
        let last = |it: &Array| it.try_index((.., .., -1.., ..));
        let dense = if let Some(it) = array("keys") {
            last(it)?
        } else if let (Some(packed), Some(scales), Some(biases)) =
            (array("keys.packed"), array("keys.scales"), array("keys.biases"))
        {
            let Some((group_size, bits)) = state.description.packing(layer) else { continue };
            let biases = last(biases)?;
            dequantize(last(packed)?, last(scales)?, &biases, group_size, bits)?
        } else {
            continue;
        };
        let numbers = dense.as_dtype(Dtype::Float32)?.contiguous()?;
        let numbers = numbers.try_as_slice::<f32>().map(<[f32]>::to_vec);
        keys.push(numbers.map_err(|e| Error::new(ErrorKind::Run, format!("a layer's keys: {e}")))?);
    }
    Ok(keys)
}

/// The norm of the difference by that of the first.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |it: &mut dyn Iterator<Item = f32>| it.map(|it| it * it).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
}
