//! Dropout before adapters, while they are trained.

use mlx_rs::{Array, error::Result as MlxResult, random};

use crate::{
    Decoder, Error, ErrorKind, Product, Result,
    parameters::{ModuleMut, Visit},
};

/// PEFT's `lora_dropout`: of what a product is given, its adapter sees each number with probability
/// `1 - rate`, and then divided by that. Which numbers are dropped follows from seed, product and place
/// alone, so a pass that is computed again drops the same.
///
/// ```
/// use mlxgk_mlx_models::{Adapter, AdapterDropout, ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let ones = |shape: [i32; 2]| mlx_rs::ops::ones::<f32>(&shape);
/// let product = model.linear_mut("model.layers.0.self_attn.q_proj").unwrap();
/// let [outputs, inputs] = product.shape().map(|it| it as i32);
/// product.set_adapter(Adapter::new(ones([2, inputs])?, ones([outputs, 2])?, 0.1)?)?;
/// let whole = model.logits_of(&[&[5, 9]])?;
/// model.set_adapter_dropout(Some(AdapterDropout { rate: 0.5, seed: 7 }))?;
/// let dropped = model.logits_of(&[&[5, 9]])?;
/// assert!(!dropped.all_close(&whole, None, None, None)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterDropout {
    /// How likely a number is dropped, below 1.
    pub rate: f32,
    /// Where the draw begins; another for each pass.
    pub seed: u64,
}

impl AdapterDropout {
    /// What is left of `x` before the product at `path`.
    pub(crate) fn apply(self, path: &str, x: &Array) -> MlxResult<Array> {
        // FNV-1a, so that products draw apart.
        let mixed = path.bytes().fold(self.seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let left = Array::from_f32(1.0 - self.rate);
        let kept = random::bernoulli(&left, x.shape(), &random::key(mixed)?)?;
        let factors = kept.as_dtype(left.dtype())?.divide(&left)?;
        x.multiply(factors.as_dtype(x.dtype())?)
    }
}

impl Decoder {
    /// Drops numbers before every adapter that is set, from here on, or with `None` no more: for the pass that
    /// a gradient is taken of.
    ///
    /// # Errors
    /// When the rate is not at least 0 and below 1, or a mixture's experts have adapters, before which nothing
    /// is dropped.
    pub fn set_adapter_dropout(&mut self, dropout: Option<AdapterDropout>) -> Result<()> {
        if let Some(it) = dropout.filter(|it| !(0.0..1.0).contains(&it.rate)) {
            let what = format!("a dropout of {}, must be at least 0 and below 1", it.rate);
            return Err(Error::new(ErrorKind::Weights, what));
        }
        let of_experts = |it: &&dyn Product| it.shape().len() > 2 && it.adapter().is_some();
        if dropout.is_some()
            && let Some(experts) = self.products().into_iter().find(of_experts)
        {
            let path = experts.path();
            let what =
                format!("dropout is not supported before the adapters of experts (`{path}`)");
            return Err(Error::new(ErrorKind::Weights, what));
        }
        self.visit_mut(&mut |module| {
            if let ModuleMut::Linear(it) = module {
                it.set_dropout(dropout);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Adapter, Linear, weight::Weight};

    fn host(array: &Array) -> Vec<f32> {
        array.contiguous().unwrap().to_vec_exact().unwrap()
    }

    #[test]
    fn a_share_is_dropped_and_the_rest_makes_up_for_it() {
        let ones = Array::ones::<f32>(&[4, 25, 100]).unwrap();
        let dropout = AdapterDropout { rate: 0.3, seed: 5 };
        let left = host(&dropout.apply("one", &ones).unwrap());
        let dropped = left.iter().filter(|it| **it == 0.0).count();
        assert!(left.iter().all(|&it| it == 0.0 || (it - 1.0 / 0.7).abs() < 1e-6));
        // 3000 of 10000 expected, with a standard deviation of 46.
        assert!((2770..3230).contains(&dropped), "{dropped}");
        assert_eq!(left, host(&dropout.apply("one", &ones).unwrap()));
        let others = [
            dropout.apply("two", &ones),
            AdapterDropout { seed: 6, ..dropout }.apply("one", &ones),
        ];
        for other in others {
            assert_ne!(left, host(&other.unwrap()));
        }
    }

    /// What an adapter does not add, dropout cannot change: not where B is 0, and of DoRA not where the
    /// magnitudes are the rows' own lengths.
    #[test]
    fn the_matrix_sees_everything() {
        let noise = |seed, shape: &[i32]| {
            random::normal::<f32>(shape, None, None, &random::key(seed).unwrap()).unwrap()
        };
        let (weight, x) = (noise(1, &[6, 8]), noise(2, &[2, 3, 8]));
        let plain = host(&x.matmul(weight.t()).unwrap());
        let a = noise(3, &[2, 8]);
        let lengths = weight.square().unwrap().sum_axis(-1, false).unwrap().sqrt().unwrap();
        for dora in [false, true] {
            for (b, changes) in
                [(Array::zeros::<f32>(&[6, 2]).unwrap(), false), (noise(4, &[6, 2]), true)]
            {
                let mut linear = Linear::new("it", Weight::dense(weight.clone()).unwrap(), None);
                let adapter = Adapter::new(a.clone(), b, 1.0).unwrap();
                let adapter = match dora {
                    true => adapter.with_magnitude(lengths.clone()).unwrap(),
                    false => adapter,
                };
                linear.set_adapter(adapter).unwrap();
                linear.set_dropout(Some(AdapterDropout { rate: 0.5, seed: 9 }));
                let dropped = host(&linear.forward(&x).unwrap());
                linear.set_dropout(None);
                let whole = host(&linear.forward(&x).unwrap());
                let far = |one: &[f32], other: &[f32]| {
                    one.iter().zip(other).any(|(a, b)| (a - b).abs() > 1e-4)
                };
                assert_eq!(far(&dropped, &plain), changes, "{dora}");
                assert_eq!(far(&dropped, &whole), changes, "{dora}");
            }
        }
    }
}
