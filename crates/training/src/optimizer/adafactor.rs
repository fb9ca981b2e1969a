//! Adafactor (Shazeer & Stern, 2018): of a matrix, the averages of squared gradients are kept by row and by
//! column, and their product stands for that of each number.

use mlx_rs::{Array, error::Result as MlxResult, ops::maximum};

use super::{After, number};

/// Settings of transformers' `Adafactor` with a learning rate of the run's (`relative_step=False`).
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{Adafactor, Optimizer, OptimizerKind};
///
/// let step = |scale_parameter| {
///     let settings = Adafactor { scale_parameter, ..Adafactor::default() };
///     let mut optimizer = Optimizer::new(OptimizerKind::Adafactor(settings))?;
///     let ten = [Array::from_slice(&[10.0_f32; 4], &[2, 2])];
///     let gradient = [Array::from_slice(&[1.0_f32; 4], &[2, 2])];
///     let after = optimizer.step(&ten, &gradient, 0.01)?;
///     Ok::<f32, mlxgk_training::Error>(after[0].as_slice::<f32>()[0])
/// };
/// // A step of the learning rate, or of that times the parameter's size.
/// assert!((step(false)? - 9.99).abs() < 1e-4);
/// assert!((step(true)? - 9.9).abs() < 1e-4);
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adafactor {
    /// What is added to squared gradients, and the least size that a parameter counts with.
    pub eps: [f64; 2],
    /// The bound on the root mean square of an update.
    pub clip_threshold: f64,
    /// Exponent of the step number t in the share `t^exponent` that a new square has in the moving averages.
    pub decay_rate: f64,
    /// Decay rate of a moving average of updates; `None` for none.
    pub beta1: Option<f64>,
    /// Decoupled weight decay: times the learning rate, the share that a step takes off a parameter.
    pub weight_decay: f64,
    /// Whether the learning rate is multiplied by a parameter's root mean square.
    pub scale_parameter: bool,
}

impl Default for Adafactor {
    /// transformers' defaults, with a learning rate that is not relative.
    fn default() -> Self {
        Self {
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            weight_decay: 0.0,
            scale_parameter: true,
        }
    }
}

/// Settings of torch's `torch.optim.Adafactor`, whose learning rate is relative and bounded by the run's.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{Optimizer, OptimizerKind, TorchAdafactor};
///
/// let kind = OptimizerKind::TorchAdafactor(TorchAdafactor::default());
/// let mut optimizer = Optimizer::new(kind)?;
/// let one = [Array::from_slice(&[1.0_f32; 4], &[2, 2])];
/// let gradient = [Array::from_slice(&[0.5_f32; 4], &[2, 2])];
/// let after = optimizer.step(&one, &gradient, 0.01)?;
/// // Against the gradient, by no more than the learning rate and the parameter's size allow.
/// let value = after[0].as_slice::<f32>()[0];
/// assert!((0.98..1.0).contains(&value));
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TorchAdafactor {
    /// Exponent of the step number t in the share `t^exponent` that a new square has in the moving averages.
    pub beta2_decay: f64,
    /// The least mean square, and the least size that a parameter counts with.
    pub eps: [f64; 2],
    /// The bound on the root mean square of an update.
    pub d: f64,
    /// Decoupled weight decay: times the learning rate, the share that a step takes off a parameter.
    pub weight_decay: f64,
}

impl Default for TorchAdafactor {
    fn default() -> Self {
        let eps = [f64::from(f32::EPSILON), 1e-3];
        Self { beta2_decay: -0.8, eps, d: 1.0, weight_decay: 0.0 }
    }
}

/// The root mean square of all numbers.
fn rms(array: &Array) -> MlxResult<Array> {
    array.square()?.sum(None)?.sqrt()?.divide(number((array.size() as f64).sqrt()))
}

/// `before` moved by `share` of the way to `new`.
fn moved(before: Option<&Array>, new: &Array, share: f64) -> MlxResult<Array> {
    match before {
        None => new.multiply(number(share)),
        Some(before) => before.multiply(number(1.0 - share))?.add(new.multiply(number(share))?),
    }
}

/// The shapes of what is kept of squared gradients.
pub(super) fn kept(shape: &[i32]) -> Vec<Vec<i32>> {
    match shape {
        [of_row @ .., last] if !of_row.is_empty() => {
            let of_column = [&of_row[..of_row.len() - 1], &[*last]].concat();
            vec![of_row.to_vec(), of_column]
        }
        _ => vec![shape.to_vec()],
    }
}

impl Adafactor {
    pub(super) fn step(
        &self,
        parameter: &Array,
        gradient: &Array,
        before: Option<&[Array]>,
        steps: u64,
        learning_rate: f64,
    ) -> MlxResult<After> {
        let before = |at: usize| before.and_then(|it| it.get(at));
        let share = (steps as f64).powf(self.decay_rate);
        let mut rate = number(learning_rate);
        if self.scale_parameter {
            rate = rate.multiply(maximum(rms(parameter)?, number(self.eps[1]))?)?;
        }
        let square = gradient.square()?.add(number(self.eps[0]))?;
        let (mut update, mut kept) = if gradient.ndim() > 1 {
            let by_row = moved(before(0), &square.mean_axis(-1, false)?, share)?;
            let by_column = moved(before(1), &square.mean_axis(-2, false)?, share)?;
            let row = by_row.divide(by_row.mean_axis(-1, true)?)?.rsqrt()?.expand_dims(-1)?;
            let column = by_column.rsqrt()?.expand_dims(-2)?;
            (row.multiply(column)?.multiply(gradient)?, vec![by_row, by_column])
        } else {
            let all = moved(before(0), &square, share)?;
            (all.rsqrt()?.multiply(gradient)?, vec![all])
        };
        let beyond = rms(&update)?.divide(number(self.clip_threshold))?;
        update = update.divide(maximum(beyond, number(1.0))?)?.multiply(&rate)?;
        if let Some(beta) = self.beta1 {
            update = moved(before(kept.len()), &update, 1.0 - beta)?;
            kept.push(update.clone());
        }
        let decayed = match self.weight_decay {
            0.0 => parameter.clone(),
            decay => parameter.subtract(parameter.multiply(rate.multiply(number(decay))?)?)?,
        };
        Ok((decayed.subtract(update)?, kept))
    }
}

impl TorchAdafactor {
    pub(super) fn step(
        &self,
        parameter: &Array,
        gradient: &Array,
        before: Option<&[Array]>,
        steps: u64,
        learning_rate: f64,
    ) -> MlxResult<After> {
        let before = |at: usize| before.and_then(|it| it.get(at));
        let steps = steps as f64;
        let share = steps.powf(self.beta2_decay);
        let rate = number(learning_rate.min(1.0 / steps.sqrt()));
        let rate = rate.multiply(maximum(rms(parameter)?, number(self.eps[1]))?)?;
        let square = gradient.square()?;
        let (estimate, kept) = if gradient.ndim() > 1 {
            let by_row = moved(before(0), &square.mean_axis(-1, false)?, share)?;
            let by_column = moved(before(1), &square.mean_axis(-2, false)?, share)?;
            let mean = maximum(by_row.mean_axis(-1, true)?, number(self.eps[0]))?;
            let both = by_row.expand_dims(-1)?.multiply(by_column.expand_dims(-2)?)?;
            (both.divide(mean.expand_dims(-1)?)?, vec![by_row, by_column])
        } else {
            let all = moved(before(0), &square, share)?;
            (all.clone(), vec![all])
        };
        let least = number(self.eps[0] * self.eps[0]);
        let update = maximum(estimate, least)?.rsqrt()?.multiply(gradient)?;
        let beyond = maximum(rms(&update)?.divide(number(self.d))?, number(1.0))?;
        let decayed = parameter.multiply(number(1.0 - learning_rate * self.weight_decay))?;
        Ok((decayed.subtract(update.multiply(rate.divide(beyond)?)?)?, kept))
    }
}
