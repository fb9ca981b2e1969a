//! The formulas of the operations, on arrays.

use std::sync::Arc;

use mlx_rs::{
    Array, Dtype,
    ops::{broadcast_to, maximum, minimum, select},
};
use mlxgk_mlx_models::HookPoint;

use crate::{Injection, Operation, Result, amount::Amount, vectors::norm};

/// Lengths are at least this where they divide.
const TINY: f32 = 1e-30;

/// One operation at one place, its vectors ready on the device.
#[derive(Debug)]
pub(crate) struct Effect {
    /// Index of the injection it came from.
    pub(crate) rule: usize,
    operation: Operation,
    alpha: f64,
    /// `v`, fp32 `[hidden]`; v̂ for `add-unit`.
    vector: Array,
    /// The same on the host.
    values: Arc<[f32]>,
    /// `alpha · vector` in the model's dtype: all that constant adding needs.
    scaled: Array,
    /// fp32 `[hidden, k]`: v̂, or a basis of the subspace; empty for the additions.
    basis: Array,
    /// `basis` transposed, `[k, hidden]`.
    transposed: Array,
    /// `Aᵀ`, fp32 `[hidden, hidden]`; `affine` only.
    matrix: Option<Array>,
}

/// How an operation changes the residual stream.
pub(crate) enum Change {
    /// Something to add, in the stream's dtype.
    Add(Array),
    /// The new stream.
    Become(Array),
}

impl Effect {
    pub(crate) fn new(
        rule: usize,
        injection: &Injection,
        point: HookPoint,
        vectors: &[&[f32]],
        dtype: Dtype,
    ) -> Result<Self> {
        let Injection { operation, alpha, .. } = *injection;
        let basis = if operation.needs_direction() { orthonormal(vectors) } else { Vec::new() };
        let v = match operation {
            Operation::AddUnit => basis[0].as_slice(),
            _ => vectors[0],
        };
        let width = v.len() as i32;
        let vector = Array::from_slice(v, &[width]);
        let scaled: Vec<f32> = v.iter().map(|it| alpha as f32 * it).collect();
        let scaled = Array::from_slice(&scaled, &[width]).as_dtype(dtype)?;
        let transposed = Array::from_slice(&basis.concat(), &[basis.len() as i32, width]);
        let basis = transposed.swap_axes(0, 1)?;
        let matrix = match injection.matrices.get(&point) {
            Some(it) => Some(Array::from_slice(it, &[width, width]).swap_axes(0, 1)?),
            None => None,
        };
        // Made now, so that no pass carries their making in its graph.
        mlx_rs::transforms::eval([&scaled, &basis].into_iter().chain(&matrix))?;
        let values = v.into();
        Ok(Self { rule, operation, alpha, vector, values, scaled, basis, transposed, matrix })
    }

    /// The vector and alpha of an operation that only adds; `None` for one that asks what is there.
    pub(crate) fn addition(&self) -> Option<(&Arc<[f32]>, f64)> {
        matches!(self.operation, Operation::Add | Operation::AddUnit)
            .then_some((&self.values, self.alpha))
    }

    /// The change to `hidden`, `[batch, tokens, hidden]`. Everything but constant adding is computed
    /// in fp32: the square of a half-precision norm can overflow.
    pub(crate) fn change(&self, hidden: &Array, amount: &Amount) -> Result<Change> {
        let dtype = hidden.dtype();
        if matches!(self.operation, Operation::Add | Operation::AddUnit) {
            if matches!(amount, Amount::Same(factor) if *factor == 1.0) {
                return Ok(Change::Add(self.scaled.as_dtype(dtype)?));
            }
            let a = amount.map(|factor| self.alpha * factor)?;
            return Ok(Change::Add(a.multiply(&self.vector)?.as_dtype(dtype)?));
        }
        let h = hidden.as_dtype(Dtype::Float32)?;
        let new = self.formula(&h, amount)?;
        Ok(Change::Become(new.as_dtype(dtype)?))
    }

    fn formula(&self, h: &Array, amount: &Amount) -> Result<Array> {
        let a = || amount.map(|factor| self.alpha * factor);
        let s = || amount.map(|factor| factor);
        let share = |strength: &Array| Ok::<_, crate::Error>(self.part(h)?.multiply(strength)?);
        Ok(match self.operation {
            Operation::Add | Operation::AddUnit => h.add(a()?.multiply(&self.vector)?)?,
            Operation::AddRelative => {
                h.add(length(h)?.multiply(a()?)?.multiply(&self.transposed)?)?
            }
            Operation::NormPreserve => {
                let g = h.add(a()?.multiply(&self.vector)?)?;
                g.multiply(length(h)?.divide(at_least_tiny(&length(&g)?)?)?)?
            }
            Operation::Ablate | Operation::AblateSubspace => h.subtract(share(&s()?)?)?,
            Operation::AblatePartial => h.subtract(share(&a()?)?)?,
            Operation::AblateAdd => h.subtract(share(&s()?)?)?.add(a()?.multiply(&self.vector)?)?,
            Operation::Clamp | Operation::CapMax | Operation::CapMin => {
                let missing =
                    Array::from_f32(self.alpha as f32).subtract(h.matmul(&self.basis)?)?;
                let zero = Array::from_f32(0.0);
                let missing = match self.operation {
                    Operation::CapMax => minimum(&missing, &zero)?,
                    Operation::CapMin => maximum(&missing, &zero)?,
                    _ => missing,
                };
                h.add(missing.multiply(s()?)?.multiply(&self.transposed)?)?
            }
            Operation::Rotate => {
                let along = h.matmul(&self.basis)?;
                let length_h = length(h)?;
                let square = at_least_tiny(&length_h.square()?)?;
                let v = &self.transposed;
                let u = v.subtract(along.divide(square)?.multiply(h)?)?;
                let u = u.multiply(length_h.divide(at_least_tiny(&length(&u)?)?)?)?;
                let cosine = amount.map(|factor| (self.alpha * factor).cos())?;
                let sine = amount.map(|factor| (self.alpha * factor).sin())?;
                h.multiply(cosine)?.add(u.multiply(sine)?)?
            }
            Operation::Replace => mixed(h, &self.vector, amount)?,
            Operation::Affine => match &self.matrix {
                Some(matrix) => mixed(h, &h.matmul(matrix)?.add(&self.vector)?, amount)?,
                None => h.clone(),
            },
        })
    }

    /// The part of `h` in the space of the vectors: `QQᵀh`.
    fn part(&self, h: &Array) -> Result<Array> {
        Ok(h.matmul(&self.basis)?.matmul(&self.transposed)?)
    }
}

/// `(1 - s)·h + s·new`, which at full strength is `new` itself, whatever `h` holds.
fn mixed(h: &Array, new: &Array, amount: &Amount) -> Result<Array> {
    if matches!(amount, Amount::Same(factor) if *factor == 1.0) {
        return Ok(broadcast_to(new, h.shape())?);
    }
    let rest = amount.map(|factor| 1.0 - factor)?;
    // Not 0·h: that is NaN where h is not finite.
    let zero = Array::from_f32(0.0);
    let kept = select(rest.eq(&zero)?, &zero, h.multiply(&rest)?)?;
    Ok(kept.add(new.multiply(amount.map(|factor| factor)?)?)?)
}

/// ‖x‖ over the last axis, which stays with length 1.
fn length(x: &Array) -> Result<Array> {
    Ok(x.square()?.sum_axis(-1, true)?.sqrt()?)
}

fn at_least_tiny(x: &Array) -> Result<Array> {
    Ok(maximum(x, Array::from_f32(TINY))?)
}

/// Gram and Schmidt's method in double precision; vectors that add no direction are left out.
fn orthonormal(vectors: &[&[f32]]) -> Vec<Vec<f32>> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for vector in vectors {
        let mut rest: Vec<f64> = vector.iter().map(|&it| f64::from(it)).collect();
        // Twice, because once loses digits where vectors are nearly parallel.
        for _ in 0..2 {
            for known in &basis {
                let along: f64 = known.iter().zip(&rest).map(|(a, b)| a * b).sum();
                rest.iter_mut().zip(known).for_each(|(it, known)| *it -= along * known);
            }
        }
        let left = rest.iter().map(|it| it * it).sum::<f64>().sqrt();
        if left > 1e-6 * norm(vector) {
            basis.push(rest.into_iter().map(|it| it / left).collect());
        }
    }
    basis.into_iter().map(|it| it.into_iter().map(|it| it as f32).collect()).collect()
}
