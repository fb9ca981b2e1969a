//! Muon (Jordan et al., 2024): momentum whose matrices are made orthogonal, nearly.

use mlx_rs::{Array, Dtype, error::Result as MlxResult, ops::maximum};

use super::{After, number};

/// Settings of `torch.optim.Muon`; for matrices alone.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{Muon, Optimizer, OptimizerKind};
///
/// let settings = Muon { weight_decay: 0.0, ..Muon::default() };
/// let mut optimizer = Optimizer::new(OptimizerKind::Muon(settings))?;
/// let zero = [Array::from_slice(&[0.0_f32; 4], &[2, 2])];
/// // Directions that the gradient has more and less of are moved about equally far.
/// let gradient = [Array::from_slice(&[10.0_f32, 0.0, 0.0, 1.0], &[2, 2])];
/// let after = optimizer.step(&zero, &gradient, 0.1)?;
/// let [more, _, _, less] = after[0].as_slice::<f32>() else { panic!("four numbers") };
/// assert!(*more < 0.0 && *less < 0.0 && more / less < 2.0);
/// // It is for matrices alone.
/// let vector = [Array::from_slice(&[0.0_f32; 4], &[4])];
/// assert!(Optimizer::new(OptimizerKind::Muon(settings))?.step(&vector, &vector, 0.1).is_err());
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Muon {
    /// Decay rate of the moving average of gradients.
    pub momentum: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Decoupled weight decay: times the learning rate, the share that a step takes off a parameter.
    pub weight_decay: f64,
    /// Coefficients of the iteration that makes a matrix orthogonal.
    pub ns_coefficients: [f64; 3],
    /// The least norm that a matrix is divided by.
    pub eps: f64,
    /// How many iterations.
    pub ns_steps: usize,
    /// How a matrix's shape changes the learning rate.
    pub adjust_lr: AdjustLr,
}

impl Default for Muon {
    /// torch's defaults.
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            weight_decay: 0.1,
            ns_coefficients: [3.4445, -4.7750, 2.0315],
            eps: 1e-7,
            ns_steps: 5,
            adjust_lr: AdjustLr::Original,
        }
    }
}

/// How the learning rate depends on a matrix's shape, with torch's names (`adjust_lr_fn`).
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_training::{AdjustLr, Muon, Optimizer, OptimizerKind};
///
/// let step = |adjust_lr| {
///     let settings = Muon { adjust_lr, weight_decay: 0.0, ..Muon::default() };
///     let mut optimizer = Optimizer::new(OptimizerKind::Muon(settings))?;
///     // One row, four columns.
///     let zero = [Array::from_slice(&[0.0_f32; 4], &[1, 4])];
///     let gradient = [Array::from_slice(&[1.0_f32, 0.0, 0.0, 0.0], &[1, 4])];
///     let after = optimizer.step(&zero, &gradient, 0.1)?;
///     Ok::<f32, mlxgk_training::Error>(after[0].as_slice::<f32>()[0])
/// };
/// let original = step(AdjustLr::Original)?;
/// assert!((step(AdjustLr::SpectralUnclamped)? / original - 0.5).abs() < 1e-4); // √(1 / 4)
/// assert!((step(AdjustLr::MatchRmsAdamw)? / original - 0.4).abs() < 1e-4); // 0.2 · √4
/// # Ok::<(), mlxgk_training::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AdjustLr {
    /// √(rows / columns), at least 1.
    #[default]
    Original,
    /// 0.2 · √(the larger of both), which makes updates as large as AdamW's.
    MatchRmsAdamw,
    /// √(rows / columns).
    SpectralUnclamped,
}

impl Muon {
    pub(super) fn step(
        &self,
        parameter: &Array,
        gradient: &Array,
        before: Option<&[Array]>,
        learning_rate: f64,
    ) -> MlxResult<After> {
        let share = 1.0 - self.momentum;
        let average = match before {
            Some([average]) => lerp(average, gradient, share)?,
            _ => gradient.multiply(number(share))?,
        };
        let update = match self.nesterov {
            true => lerp(gradient, &average, self.momentum)?,
            false => average.clone(),
        };
        let [rows, columns] = [0, 1].map(|it| f64::from(parameter.dim(it)));
        let adjusted = match self.adjust_lr {
            AdjustLr::Original => (rows / columns).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
            AdjustLr::SpectralUnclamped => (rows / columns).sqrt(),
        };
        let decayed = parameter.multiply(number(1.0 - learning_rate * self.weight_decay))?;
        let update = self.orthogonal(&update)?.multiply(number(-learning_rate * adjusted))?;
        Ok((decayed.add(update)?, vec![average]))
    }

    /// The Newton-Schulz iteration, rounded to bf16 where torch's is; sums are fp32.
    fn orthogonal(&self, update: &Array) -> MlxResult<Array> {
        let rounded = |it: Array| it.as_dtype(Dtype::Bfloat16)?.as_dtype(Dtype::Float32);
        let [a, b, c] = self.ns_coefficients.map(number);
        let is_tall = update.dim(0) > update.dim(1);
        let mut matrix = rounded(if is_tall { update.t() } else { update.clone() })?;
        let norm = rounded(matrix.square()?.sum(None)?.sqrt()?)?;
        matrix = rounded(matrix.divide(maximum(norm, rounded(number(self.eps))?)?)?)?;
        for _ in 0..self.ns_steps {
            let gram = rounded(matrix.matmul(matrix.t())?)?;
            let square = gram.matmul(&gram)?.multiply(&c)?;
            let polynomial = rounded(square.add(gram.multiply(&b)?)?)?;
            matrix = rounded(polynomial.matmul(&matrix)?.add(matrix.multiply(&a)?)?)?;
        }
        Ok(if is_tall { matrix.t() } else { matrix })
    }
}

/// torch's `lerp`, whose form depends on the weight.
fn lerp(from: &Array, to: &Array, weight: f64) -> MlxResult<Array> {
    let way = to.subtract(from)?;
    match weight < 0.5 {
        true => from.add(way.multiply(number(weight))?),
        false => to.subtract(way.multiply(number(1.0 - weight))?),
    }
}
