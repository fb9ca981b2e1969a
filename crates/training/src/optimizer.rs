//! Optimizers with torch's numbers, on fp32 parameters.

use mlx_rs::{Array, error::Result as MlxResult, ops::stack, transforms::eval};

use crate::{Error, ErrorKind, Result, head::host};

mod adafactor;
mod muon;

pub use self::adafactor::{Adafactor, TorchAdafactor};
pub use self::muon::{AdjustLr, Muon};

/// A parameter after a step, and what is kept for the next.
type After = (Array, Vec<Array>);

/// Which optimizer, with the names and defaults of torch's.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{Optimizer, OptimizerKind};
///
/// let [parameter, gradient] = [1.0_f32, 0.5].map(|it| Array::from_slice(&[it], &[1]));
/// let step = |kind| {
///     let after = Optimizer::new(kind)?.step(&[parameter.clone()], &[gradient.clone()], 0.1)?;
///     Ok::<f32, mlxgk_training::Error>(after[0].as_slice::<f32>()[0])
/// };
/// let sgd = OptimizerKind::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
/// assert_eq!(step(sgd)?, 0.95); // 1 - 0.1 · 0.5
/// // AdamW's first step is as long as the learning rate, whatever the gradient.
/// let adam_w = OptimizerKind::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
/// assert!((step(adam_w)? - 0.9).abs() < 1e-6);
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum OptimizerKind {
    /// AdamW (Loshchilov & Hutter, 2019), with bias correction.
    AdamW {
        /// Decay rates of the moving averages of gradients and of their squares.
        betas: [f64; 2],
        /// Added to the root of the latter.
        eps: f64,
        /// Decoupled weight decay: times the learning rate, the share that a step takes off a parameter.
        weight_decay: f64,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Decay rate of the moving average of gradients; 0 for none.
        momentum: f64,
        /// Nesterov's momentum.
        nesterov: bool,
        /// Times the parameter, added to its gradient.
        weight_decay: f64,
    },
    /// Adafactor as transformers has it.
    Adafactor(Adafactor),
    /// Adafactor as torch has it.
    TorchAdafactor(TorchAdafactor),
    /// Muon.
    Muon(Muon),
}

impl Default for OptimizerKind {
    /// AdamW as torch has it, without weight decay.
    fn default() -> Self {
        Self::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Refuses what both kinds of Adafactor do.
fn check_adafactor(eps: [f64; 2], clip: f64, decay: f64) -> Result<()> {
    let refuse = |what: String| Err(Error::config(what));
    if let Some(it) = eps.iter().find(|it| it.is_nan() || **it < 0.0) {
        return refuse(format!("eps is {it}, must be at least 0"));
    }
    if clip.is_nan() || clip <= 0.0 {
        return refuse(format!("the bound on updates is {clip}, must be above 0"));
    }
    if decay.is_nan() || decay > 0.0 {
        return refuse(format!("the decay of averages is {decay}, must be at most 0"));
    }
    Ok(())
}

impl OptimizerKind {
    /// Refuses values that torch refuses.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |name: &str, value: f64, must: &str| {
            Err(Error::config(format!("{name} is {value}, must be {must}")))
        };
        let (weight_decay, momenta) = match *self {
            Self::AdamW { betas, eps, weight_decay } => {
                if eps.is_nan() || eps < 0.0 {
                    return refuse("eps", eps, "at least 0");
                }
                (weight_decay, betas.to_vec())
            }
            Self::Sgd { momentum, nesterov, weight_decay } => {
                if nesterov && momentum == 0.0 {
                    return refuse("momentum", momentum, "above 0 for Nesterov's");
                }
                (weight_decay, vec![momentum])
            }
            Self::Adafactor(Adafactor {
                eps,
                clip_threshold,
                decay_rate,
                beta1,
                weight_decay,
                ..
            }) => {
                check_adafactor(eps, clip_threshold, decay_rate)?;
                (weight_decay, beta1.into_iter().collect())
            }
            Self::TorchAdafactor(TorchAdafactor { eps, d, beta2_decay, weight_decay }) => {
                check_adafactor(eps, d, beta2_decay)?;
                (weight_decay, Vec::new())
            }
            Self::Muon(Muon { momentum, eps, ns_steps, weight_decay, .. }) => {
                if eps.is_nan() || eps < 0.0 {
                    return refuse("eps", eps, "at least 0");
                }
                if ns_steps >= 100 {
                    return refuse("the number of iterations", ns_steps as f64, "below 100");
                }
                (weight_decay, vec![momentum])
            }
        };
        if let Some(&it) = momenta.iter().find(|it| !(0.0..1.0).contains(*it)) {
            return refuse("a beta or momentum", it, "at least 0 and below 1");
        }
        if weight_decay.is_nan() || weight_decay < 0.0 {
            return refuse("weight decay", weight_decay, "at least 0");
        }
        Ok(())
    }

    /// Refuses a parameter that it cannot train, by name.
    pub(crate) fn check_parameter(&self, name: &str, parameter: &Array) -> Result<()> {
        let shape = parameter.shape();
        if matches!(self, Self::Muon(_)) && shape.len() != 2 {
            let what = format!("Muon trains matrices, but `{name}` is {shape:?}");
            return Err(Error::config(what));
        }
        Ok(())
    }

    /// The shapes of what is kept of a parameter.
    pub(crate) fn kept(&self, shape: &[i32]) -> Vec<Vec<i32>> {
        let whole = |count| vec![shape.to_vec(); count];
        match self {
            Self::AdamW { .. } => whole(2),
            Self::Sgd { momentum, .. } => whole(usize::from(*momentum != 0.0)),
            Self::Adafactor(it) => {
                let mut kept = adafactor::kept(shape);
                kept.extend(whole(usize::from(it.beta1.is_some())));
                kept
            }
            Self::TorchAdafactor(_) => adafactor::kept(shape),
            Self::Muon(_) => whole(1),
        }
    }
}

/// An optimizer and what it remembers.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{Optimizer, OptimizerKind};
///
/// // The least of (x - 3)², whose gradient is 2 (x - 3).
/// let sgd = OptimizerKind::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
/// let mut optimizer = Optimizer::new(sgd)?;
/// let mut x = vec![Array::from_slice(&[0.0_f32], &[1])];
/// for _ in 0..50 {
///     let gradient = Array::from_slice(&[2.0 * (x[0].as_slice::<f32>()[0] - 3.0)], &[1]);
///     x = optimizer.step(&x, &[gradient], 0.1)?;
/// }
/// assert!((x[0].as_slice::<f32>()[0] - 3.0).abs() < 1e-3);
/// assert_eq!(optimizer.steps(), 50);
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    /// Steps made.
    steps: u64,
    /// Per parameter its averages; empty before the first step.
    kept: Vec<Vec<Array>>,
}

/// A step that is computed and not yet made.
#[derive(Debug)]
pub(crate) struct Prepared {
    after: Vec<Array>,
    steps: u64,
    kept: Vec<Vec<Array>>,
}

impl Optimizer {
    /// An optimizer that has made no step.
    ///
    /// # Errors
    /// When a value is out of its range.
    pub fn new(kind: OptimizerKind) -> Result<Self> {
        kind.check()?;
        Ok(Self { kind, steps: 0, kept: Vec::new() })
    }

    /// How many steps it has made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step: the parameters after it, evaluated. Both lists are fp32, in the same order every time.
    ///
    /// # Errors
    /// When the lists differ from each other or from those of the step before, the norm of a parameter
    /// is not finite after the step, or MLX fails. Nothing is then changed.
    pub fn step(
        &mut self,
        parameters: &[Array],
        gradients: &[Array],
        learning_rate: f64,
    ) -> Result<Vec<Array>> {
        let name = |index| format!("parameter {index}");
        let prepared = self.prepare(parameters, gradients, learning_rate, &name)?;
        Ok(self.commit(prepared))
    }

    /// What a [`step`](Self::step) makes, with nothing changed yet; a name for each parameter is for errors.
    pub(crate) fn prepare(
        &self,
        parameters: &[Array],
        gradients: &[Array],
        learning_rate: f64,
        name: &dyn Fn(usize) -> String,
    ) -> Result<Prepared> {
        let pairs = || parameters.iter().zip(gradients);
        let fits = parameters.len() == gradients.len()
            && (self.kept.is_empty() || self.kept.len() == parameters.len())
            && pairs().all(|(parameter, gradient)| parameter.shape() == gradient.shape());
        if !fits {
            return Err(Error::config("the gradients are not those of the parameters"));
        }
        let steps = self.steps + 1;
        let (mut after, mut kept) = (Vec::new(), Vec::new());
        for (index, (parameter, gradient)) in pairs().enumerate() {
            let before = self.kept.get(index).map(Vec::as_slice);
            let (parameter, own) =
                self.kind.step(parameter, gradient, before, steps, learning_rate)?;
            after.push(parameter);
            kept.push(own);
        }
        eval(after.iter().chain(kept.iter().flatten()))?;
        if let Some(index) = first_without_norm(&after)? {
            let what = format!(
                "the norm of {} is not finite after step {steps}; a lower learning rate or weight decay may \
                 help",
                name(index)
            );
            return Err(Error::new(ErrorKind::NotFinite, what));
        }
        Ok(Prepared { after, steps, kept })
    }

    /// Makes a prepared step its own: the parameters after it.
    pub(crate) fn commit(&mut self, Prepared { after, steps, kept }: Prepared) -> Vec<Array> {
        (self.steps, self.kept) = (steps, kept);
        after
    }

    /// What it remembers, for a checkpoint.
    pub(crate) fn state(&self) -> (u64, &[Vec<Array>]) {
        (self.steps, &self.kept)
    }

    /// Takes up where another stopped.
    pub(crate) fn set_state(&mut self, steps: u64, kept: Vec<Vec<Array>>) {
        (self.steps, self.kept) = (steps, kept);
    }
}

impl OptimizerKind {
    fn step(
        &self,
        parameter: &Array,
        gradient: &Array,
        before: Option<&[Array]>,
        steps: u64,
        learning_rate: f64,
    ) -> MlxResult<After> {
        match *self {
            Self::AdamW { betas: [first, second], eps, weight_decay } => {
                let zeros = || gradient.multiply(number(0.0));
                let [mean, square] = match before {
                    Some([mean, square]) => [mean.clone(), square.clone()],
                    _ => [zeros()?, zeros()?],
                };
                let mean = mean.add(gradient.subtract(&mean)?.multiply(number(1.0 - first))?)?;
                let own = gradient.multiply(gradient)?.multiply(number(1.0 - second))?;
                let square = square.multiply(number(second))?.add(own)?;
                let steps = steps as f64;
                let corrections = [first, second].map(|beta| 1.0 - beta.powf(steps));
                let root =
                    square.sqrt()?.divide(number(corrections[1].sqrt()))?.add(number(eps))?;
                let decayed = parameter.multiply(number(1.0 - learning_rate * weight_decay))?;
                let length = number(-learning_rate / corrections[0]);
                Ok((decayed.add(mean.divide(root)?.multiply(length)?)?, vec![mean, square]))
            }
            Self::Sgd { momentum, nesterov, weight_decay } => {
                let gradient = match weight_decay {
                    0.0 => gradient.clone(),
                    decay => gradient.add(parameter.multiply(number(decay))?)?,
                };
                let moved = |by: &Array| parameter.add(by.multiply(number(-learning_rate))?);
                if momentum == 0.0 {
                    return Ok((moved(&gradient)?, Vec::new()));
                }
                let average = match before {
                    Some([average]) => average.multiply(number(momentum))?.add(&gradient)?,
                    _ => gradient.clone(),
                };
                let after = match nesterov {
                    true => moved(&gradient.add(average.multiply(number(momentum))?)?)?,
                    false => moved(&average)?,
                };
                Ok((after, vec![average]))
            }
            Self::Adafactor(it) => it.step(parameter, gradient, before, steps, learning_rate),
            Self::TorchAdafactor(it) => it.step(parameter, gradient, before, steps, learning_rate),
            Self::Muon(it) => it.step(parameter, gradient, before, learning_rate),
        }
    }
}

fn number(value: f64) -> Array {
    Array::from_f32(value as f32)
}

/// The first array whose norm fp32 cannot hold: with a number that is not finite, or too large for a model to
/// compute with.
fn first_without_norm(arrays: &[Array]) -> Result<Option<usize>> {
    if arrays.is_empty() {
        return Ok(None);
    }
    let sums = arrays.iter().map(|it| it.square()?.sum(None));
    let sums = host(&stack(&sums.collect::<MlxResult<Vec<_>>>()?, 0)?)?;
    Ok(sums.iter().position(|it| !it.is_finite()))
}
