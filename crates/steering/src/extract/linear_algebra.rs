//! The little linear algebra that extraction needs, in double precision: rows are `Vec<f64>`.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

use crate::{Error, ErrorKind, Result};

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    combined(rows, &vec![1.0 / rows.len() as f64; rows.len()])
}

/// `Σ weight · row`.
pub(super) fn combined(rows: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; rows[0].len()];
    for (row, weight) in rows.iter().zip(weights) {
        sum.iter_mut().zip(row).for_each(|(sum, it)| *sum += weight * it);
    }
    sum
}

pub(super) fn centered(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mean = mean(rows);
    let shift = |row: &Vec<f64>| row.iter().zip(&mean).map(|(it, mean)| it - mean).collect();
    rows.iter().map(shift).collect()
}

/// `rows · rowsᵀ`.
pub(super) fn gram(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    rows.iter().map(|a| rows.iter().map(|b| dot(a, b)).collect()).collect()
}

/// The first right singular vector of `rows`, of any length, and `σ₁²/Σσ²`: from the eigenvectors
/// of `rows · rowsᵀ`, or of `rowsᵀ · rows` where that is smaller.
pub(super) fn principal(rows: &[Vec<f64>]) -> Result<(Vec<f64>, Option<f64>)> {
    let fail = |what: &str| Err(Error::new(ErrorKind::Pairs, what));
    let matrix = DMatrix::from_fn(rows.len(), rows[0].len(), |row, at| rows[row][at]);
    let is_wide = rows.len() <= rows[0].len();
    let product = if is_wide { &matrix * matrix.transpose() } else { matrix.transpose() * &matrix };
    let total = product.trace();
    if total <= 0.0 {
        return fail("the pairs do not vary, so they have no principal component");
    }
    // Scaled, so that the solver's limit of precision is relative.
    let most = 1000 * product.nrows();
    let Some(found) = SymmetricEigen::try_new(product / total, f64::EPSILON, most) else {
        return fail("the principal component cannot be computed: the solver did not converge");
    };
    let first = found.eigenvalues.imax();
    let weights = found.eigenvectors.column(first);
    let vector = if is_wide { matrix.tr_mul(&weights) } else { weights.into_owned() };
    Ok((vector.as_slice().to_vec(), Some(found.eigenvalues[first])))
}

/// Solves a system of `count` linear equations.
pub(super) fn solve(
    count: usize,
    entry: impl Fn(usize, usize) -> f64,
    right: Vec<f64>,
) -> Result<Vec<f64>> {
    let solved = DMatrix::from_fn(count, count, entry).lu().solve(&DVector::from_vec(right));
    let what = "the probe's equations have no solution";
    solved.map(|it| it.as_slice().to_vec()).ok_or_else(|| Error::new(ErrorKind::Pairs, what))
}
