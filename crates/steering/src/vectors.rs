//! Steering vectors: a direction per place in the decoder.

use std::collections::BTreeMap;

use mlxgk_mlx_models::{Decoder, HookPoint};
use mlxgk_torch::SplitMix64;

use crate::{Error, ErrorKind, Result};

/// One fp32 vector of the model's width per hook point, and what is known of where they came from.
///
/// ```
/// use mlxgk_steering::{HookPoint, SteeringVectors};
///
/// let joy = SteeringVectors::new([(HookPoint::ResidPost(3), vec![3.0, 4.0])])?;
/// let calm = SteeringVectors::new([(HookPoint::ResidPost(4), vec![1.0, 0.0])])?;
/// let both = SteeringVectors::combined(&[(2.0, &joy), (-1.0, &calm)])?;
/// assert_eq!(both.get(HookPoint::ResidPost(3)), Some(&[6.0, 8.0][..]));
/// assert_eq!(both.get(HookPoint::ResidPost(4)), Some(&[-1.0, 0.0][..]));
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SteeringVectors {
    vectors: BTreeMap<HookPoint, Vec<f32>>,
    metadata: BTreeMap<String, String>,
}

/// The most layers that [`Decoder`] reads. Without a limit, a format with a row per layer would
/// allocate as many rows as a file claims.
const MAX_LAYER: usize = 65_534;

impl SteeringVectors {
    /// Vectors at their places.
    ///
    /// # Errors
    /// When there is none, one is empty or holds a value that is not finite, their lengths differ, or a
    /// layer is beyond 65,534.
    pub fn new(vectors: impl IntoIterator<Item = (HookPoint, Vec<f32>)>) -> Result<Self> {
        let vectors: BTreeMap<_, _> = vectors.into_iter().collect();
        let refuse = |what: String| Err(Error::new(ErrorKind::Vector, what));
        let Some((first, len)) = vectors.iter().next().map(|(point, it)| (*point, it.len())) else {
            return refuse("a set of steering vectors needs at least one vector".to_owned());
        };
        for (point, vector) in &vectors {
            if point.layer().is_some_and(|it| it > MAX_LAYER) {
                return refuse(format!("{point} is out of range; layers go up to {MAX_LAYER}"));
            }
            if vector.is_empty() || vector.len() != len {
                let other = vector.len();
                return refuse(format!("{point} has {other} values, but {first} has {len}"));
            }
            if let Some(at) = vector.iter().position(|it| !it.is_finite()) {
                return refuse(format!("value {at} of {point} is {}", vector[at]));
            }
        }
        Ok(Self { vectors, metadata: BTreeMap::new() })
    }

    /// `Σ alpha · vectors`, place by place, over all places that any of them has.
    ///
    /// # Errors
    /// When there is none, their lengths differ, or a sum overflows.
    pub fn combined(parts: &[(f64, &Self)]) -> Result<Self> {
        let mut sum: BTreeMap<HookPoint, Vec<f32>> = BTreeMap::new();
        for (alpha, part) in parts {
            for (point, vector) in &part.vectors {
                let sum = sum.entry(*point).or_insert_with(|| vec![0.0; vector.len()]);
                if sum.len() != vector.len() {
                    let what = format!(
                        "{point} has {} values in one file and {} in another",
                        sum.len(),
                        vector.len()
                    );
                    return Err(Error::new(ErrorKind::Vector, what));
                }
                for (sum, value) in sum.iter_mut().zip(vector) {
                    *sum += *alpha as f32 * value;
                }
            }
        }
        Self::new(sum)
    }

    /// Vectors of the same norms in random directions, from a normal distribution: the control
    /// that every effect has to be compared with.
    ///
    /// # Errors
    /// When a vector cannot be drawn.
    pub fn random_like(&self, seed: u64) -> Result<Self> {
        let mut rng = SplitMix64::new(seed);
        let vectors = self.vectors.iter().map(|(point, vector)| {
            let noise: Vec<f64> = vector.iter().map(|_| rng.normal()).collect();
            let scale = norm(vector) / noise.iter().map(|it| it * it).sum::<f64>().sqrt();
            (*point, noise.into_iter().map(|it| (it * scale) as f32).collect())
        });
        Self::new(vectors)
    }

    /// Only the vectors after the given blocks (`resid_post`).
    ///
    /// # Errors
    /// When one of the layers has no vector.
    pub fn at_layers(&self, layers: &[usize]) -> Result<Self> {
        let vectors = layers.iter().map(|&layer| {
            let point = HookPoint::ResidPost(layer);
            let vector = self.vectors.get(&point).ok_or_else(|| {
                let what = format!("no vector for layer {layer}; expected one of {}", self.names());
                Error::new(ErrorKind::Layer, what)
            })?;
            Ok((point, vector.clone()))
        });
        let vectors = vectors.collect::<Result<Vec<_>>>()?;
        Ok(Self { metadata: self.metadata.clone(), ..Self::new(vectors)? })
    }

    /// The vector for the logit path: the one after the final norm, or else the last layer's, used
    /// there.
    pub fn for_logits(&self) -> Self {
        let last = self.vectors.get(&HookPoint::FinalNorm);
        let last = last.or_else(|| self.vectors.values().next_back()).cloned();
        let vectors = last.into_iter().map(|it| (HookPoint::FinalNorm, it)).collect();
        Self { vectors, metadata: self.metadata.clone() }
    }

    /// Adds an entry to the file's metadata (`model`, `method`, ...).
    #[must_use]
    pub fn note(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// The entries of the metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The vector at a place.
    pub fn get(&self, point: HookPoint) -> Option<&[f32]> {
        self.vectors.get(&point).map(Vec::as_slice)
    }

    /// Every place with its vector.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (HookPoint, &[f32])> {
        self.vectors.iter().map(|(point, vector)| (*point, vector.as_slice()))
    }

    /// Blocks after which there is a vector, in ascending order.
    pub fn layers(&self) -> Vec<usize> {
        let layer = |point: &HookPoint| match point {
            HookPoint::ResidPost(layer) => Some(*layer),
            _ => None,
        };
        self.vectors.keys().filter_map(layer).collect()
    }

    /// Values per vector: the width of the model they were made for.
    pub fn width(&self) -> usize {
        self.vectors.values().next().map_or(0, Vec::len)
    }

    /// Euclidean length of the vector at a place; 0 where there is none.
    pub fn norm(&self, point: HookPoint) -> f64 {
        self.get(point).map_or(0.0, norm)
    }

    /// Checks that the vectors fit a model.
    ///
    /// # Errors
    /// When the width differs, or a layer does not exist.
    pub fn check(&self, model: &Decoder) -> Result<()> {
        self.check_shape(model.hidden_size(), model.components().layers)
    }

    /// Checks that the vectors fit a model of this width and with so many layers.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_shape(&self, width: usize, layers: usize) -> Result<()> {
        for (point, vector) in &self.vectors {
            if vector.len() != width {
                let len = vector.len();
                let what = format!("{point} has {len} values, but the model's width is {width}");
                return Err(Error::new(ErrorKind::Vector, what));
            }
            match point {
                HookPoint::ResidPre(layer)
                | HookPoint::ResidMid(layer)
                | HookPoint::ResidPost(layer)
                    if *layer >= layers =>
                {
                    let what = format!("{point}: the model has layers 0 to {}", layers - 1);
                    return Err(Error::new(ErrorKind::Layer, what));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn names(&self) -> String {
        self.vectors.keys().map(HookPoint::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Euclidean length, summed in double precision.
pub(crate) fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|&it| f64::from(it) * f64::from(it)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_vectors_keep_the_norm_and_little_of_the_direction() {
        let vector: Vec<f32> = (0..400).map(|it| it as f32).collect();
        let point = HookPoint::ResidPost(1);
        let vectors = SteeringVectors::new([(point, vector.clone())]).unwrap();
        let random = vectors.random_like(5).unwrap();
        assert!((random.norm(point) / vectors.norm(point) - 1.0).abs() < 1e-6);
        let dot: f32 = random.get(point).unwrap().iter().zip(&vector).map(|(a, b)| a * b).sum();
        assert!(f64::from(dot).abs() < 0.2 * vectors.norm(point).powi(2));
        assert_ne!(random, vectors.random_like(6).unwrap());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = |values: Vec<f32>| (HookPoint::ResidPost(0), values);
        let two = (HookPoint::FinalNorm, vec![1.0, 2.0]);
        let far = (HookPoint::ResidPost(usize::MAX), vec![1.0]);
        for (vectors, words) in [
            (vec![far], "out of range"),
            (vec![], "at least one vector"),
            (vec![one(vec![1.0]), two.clone()], "final_norm has 2 values, but resid_post.0 has 1"),
            (vec![one(vec![1.0, f32::NAN]), two], "value 1 of resid_post.0 is NaN"),
            (vec![one(vec![])], "0 values"),
        ] {
            let error = SteeringVectors::new(vectors).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
