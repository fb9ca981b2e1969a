//! Exponential moving averages of parameters.

use mlx_rs::{Array, transforms::eval};

use crate::{Error, Result};

/// Moves each of `target` towards `source`: `θ' = d θ' + (1 - d) θ`, in fp32.
///
/// # Errors
/// When the lists differ in length or shapes, the decay is outside 0 to 1, or MLX fails; `target` is then
/// as it was.
pub fn ema_update(target: &mut Vec<Array>, source: &[Array], decay: f64) -> Result<()> {
    let fits = target.len() == source.len()
        && target.iter().zip(source).all(|(target, source)| target.shape() == source.shape());
    if !fits {
        return Err(Error::config("the averages are not those of the parameters"));
    }
    if !(0.0..=1.0).contains(&decay) {
        return Err(Error::config(format!(
            "the decay of an average is {decay}, must be from 0 to 1"
        )));
    }
    let [keep, take] = [decay, 1.0 - decay].map(|it| Array::from_f32(it as f32));
    let mut moved = Vec::with_capacity(target.len());
    for (target, source) in target.iter().zip(source) {
        moved.push(target.multiply(&keep)?.add(source.multiply(&take)?)?);
    }
    eval(&moved)?;
    *target = moved;
    Ok(())
}

/// An exponential moving average of the parameters under training, in fp32.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::Ema;
///
/// let mut ema = Ema::new(&[Array::from_slice(&[1.0_f32, 0.0], &[2])], 0.75, false)?;
/// ema.update(&[Array::from_slice(&[5.0_f32, 4.0], &[2])])?;
/// assert_eq!(ema.averages()[0].as_slice::<f32>(), [2.0, 1.0]); // 0.75 · 1 + 0.25 · 5, and so on
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Ema {
    decay: f64,
    warmup: bool,
    updates: u64,
    averages: Vec<Array>,
}

impl Ema {
    /// An average that begins with `parameters`. With a warm-up, update t (from 0) has the decay
    /// `min(d, (1 + t) / (10 + t))`, so that it does not cling to where it began.
    ///
    /// # Errors
    /// When the decay is outside 0 to 1.
    pub fn new(parameters: &[Array], decay: f64, warmup: bool) -> Result<Self> {
        if !(0.0..=1.0).contains(&decay) {
            let what = format!("the decay of an average is {decay}, must be from 0 to 1");
            return Err(Error::config(what));
        }
        Ok(Self { decay, warmup, updates: 0, averages: parameters.to_vec() })
    }

    /// After a step.
    ///
    /// # Errors
    /// When the parameters are others, or MLX fails.
    pub fn update(&mut self, parameters: &[Array]) -> Result<()> {
        let step = self.updates as f64;
        let decay = match self.warmup {
            true => self.decay.min((1.0 + step) / (10.0 + step)),
            false => self.decay,
        };
        ema_update(&mut self.averages, parameters, decay)?;
        self.updates += 1;
        Ok(())
    }

    /// The averages.
    pub fn averages(&self) -> &[Array] {
        &self.averages
    }

    pub(crate) fn updates(&self) -> u64 {
        self.updates
    }

    pub(crate) fn set_state(&mut self, updates: u64, averages: Vec<Array>) {
        (self.updates, self.averages) = (updates, averages);
    }
}
